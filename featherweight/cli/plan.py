"""`fw plan`: which recipe fits a budget, before anything is allocated."""

from pathlib import Path
from typing import Annotated, Any

import typer

from featherweight.cli.screen import AsJson, leave_cleanly, print_json, print_result


def plan(
    recipe: Annotated[
        Path | None,
        typer.Argument(metavar="[RECIPE]", help="Recipe that gives data, steps and batch.", show_default=False),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="Name, folder or config.json of the model.", show_default=False),
    ] = None,
    budget: Annotated[
        str | None, typer.Option("--budget", "-b", help="Memory to use, such as 12GB or 24GiB.", show_default=False)
    ] = None,
    device: Annotated[
        str | None,
        typer.Option("--device", "-d", help="A card such as rtx4090, cuda, or cpu.", show_default=False),
    ] = None,
    seq_len: Annotated[int | None, typer.Option("--seq-len", help="Tokens of a row.", show_default=False)] = None,
    tokens_per_step: Annotated[
        int | None, typer.Option("--tokens-per-step", help="Tokens of an optimizer step.", show_default=False)
    ] = None,
    exclude: Annotated[
        str,
        typer.Option(
            "--exclude", help="What not to give up: bf16-weights, 8-bit-states, low-rank, int8-weights, few-parameters."
        ),
    ] = "",
    solve: Annotated[
        str | None,
        typer.Option("--solve", help="Ask for max_seq_len, micro_batch, rank or min_memory.", show_default=False),
    ] = None,
    why: Annotated[bool, typer.Option("--why", help="Say what fills the memory and what to change.")] = False,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Write the best recipe to this YAML file.", show_default=False)
    ] = None,
    report: Annotated[
        Path | None, typer.Option("--report", help="Write the plan as an HTML page.", show_default=False)
    ] = None,
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="Measure this machine's GPU first, and keep it.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Find the recipes that fit a budget: simulated steps, no GPU, no weights.

    Every recipe shows what it needs of the device, what it gives up, and an estimate of its speed. The best one is
    written with --out, ready for fw train. --solve answers how long a sequence, how large a micro-batch or rank the
    recipe (or the best one found) allows.

    [bold]Examples[/bold]

    fw plan --model llama-7b --budget 12GB --seq-len 1024 --out recipe.yaml

    fw plan --model ./my_model --device rtx4090 --solve max_seq_len

    fw plan recipe.yaml --budget 16GB --why
    """
    from featherweight.planner import plan as search
    from featherweight.planner import solve as answer

    with leave_cleanly("plan", []):
        if calibrate:
            _calibrate(device)
        with _status(as_json) as tell:
            found = search(
                model,
                budget,
                recipe=recipe,
                device=device,
                seq_len=seq_len,
                tokens_per_step=tokens_per_step,
                exclude=[tag.strip() for tag in exclude.split(",") if tag.strip()],
                on_progress=tell,
            )
        content: dict[str, Any] = found.to_dict()
        page = found.report()
        if solve is not None:
            with _status(as_json) as tell:
                tell(f"solving for {solve}")
                solution = answer(solve, None, found.best.recipe, budget, device=device)  # type: ignore[arg-type]
            content["solution"] = {solve: solution.value, "total_bytes": solution.need.total_bytes}
            page.add_facts({solve: solution.value, "needs (GiB)": solution.need.total_bytes / 2**30}, title="Answer")
        if why and found.rows:
            with _status(as_json) as tell:
                tell("trying single changes")
                changes = found.why()
            content["changes"] = [vars(change) for change in changes]
            page.add_table(
                "Changes that save memory, the cheapest first",
                ["change", "saves (GiB)", "time of a step", "same numbers", "how"],
                [
                    [
                        c.name,
                        c.saved_bytes / 2**30,
                        f"x {c.time_ratio:.2f}",
                        "yes" if c.is_exact else "no",
                        " ".join(c.overrides),
                    ]
                    for c in changes
                ],
            )
        if out is not None and found.rows:
            found.save_recipe(out)
        if report is not None:
            page.save_html(report)
        if as_json:
            print_json(content)
        else:
            print_result(page, None)
            if out is not None and found.rows:
                print(f"\nTrain it: fw train {out}")
        if not found.rows:
            raise typer.Exit(1)


def _calibrate(device: str | None) -> None:
    from featherweight.memory import measure_calibration, save_calibration

    path = save_calibration(measure_calibration(device if device and device.startswith("cuda") else "cuda"))
    print(f"Measured; kept in {path}")


def _status(as_json: bool) -> Any:
    """Return a context that shows what is being done, on a terminal alone."""
    from contextlib import contextmanager

    from rich.console import Console

    @contextmanager
    def show() -> Any:
        console = Console(stderr=True)
        if as_json or not console.is_terminal:
            yield lambda _: None
            return
        with console.status("simulating") as status:
            yield lambda text: status.update(f"simulating {text}")

    return show()
