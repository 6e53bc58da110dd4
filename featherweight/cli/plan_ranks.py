"""`fw plan RECIPE --gpus N`: bytes and traffic of each GPU, shown at a glance."""

from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from featherweight.cli.screen import print_json
from featherweight.errors import ConfigError
from featherweight.report import format_bytes


def show_ranks(
    recipe: Path | None,
    gpus: int,
    *,
    device: str | None,
    budget: str | None,
    report: Path | None,
    as_json: bool,
) -> bool:
    """Plan a recipe for several GPUs and show it; return whether a sharding fits.

    Raises:
        ConfigError: if there is no recipe.
    """
    from featherweight.planner.ranks import plan_ranks

    if recipe is None:
        raise ConfigError(
            f"plan: --gpus={gpus} asks about a recipe as it stands, and none is given; expected one. Write one with "
            "fw plan --model ... --out recipe.yaml first."
        )
    found = plan_ranks(recipe, gpus, device=device, budget=budget)
    if report is not None:
        found.report().save_html(report)
    if as_json:
        print_json(found.to_dict())
        return found.best is not None
    console = Console()
    console.print(Text(found.verdict, style="bold"))
    table = Table(box=None, pad_edge=False)
    for column in (
        "sharding",
        "weights",
        "gathered",
        "gradients",
        "state",
        "activations",
        "others",
        "all",
        "sent/step",
    ):
        table.add_column(column, justify="left" if column == "sharding" else "right")
    for row in found.rows:
        amounts = [*row.bytes_by_category.values(), row.total_bytes, round(row.sent_bytes)]
        table.add_row(row.sharding, *[format_bytes(amount) for amount in amounts])
    console.print(table)
    if shared := [row.sharding for row in found.rows if row.basis == "sharded"]:
        text = f"Under {', '.join(shared)} each GPU keeps a share of the bases (sharding.basis)."
        console.print(Text(text, style="dim"))
    for name, reason in found.refused.items():
        console.print(Text(f"no: {name}: {reason}", style="dim"), soft_wrap=True)
    console.print(Text("By formula and simulation; nothing of this was measured on GPUs.", style="dim"))
    return found.best is not None
