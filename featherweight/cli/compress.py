"""`fw compress`: make a model smaller by cutting the rank of its matrices."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featherweight.cli.given import require_model
from featherweight.cli.screen import AsJson, leave_cleanly, print_json, print_notice, print_result
from featherweight.methods.options import WeLoreOptions
from featherweight.text.compress_check import check_compression

if TYPE_CHECKING:
    from featherweight.methods.welore.stream import Progress


MaxPerplexity = Annotated[
    str | None,
    typer.Option("--max-perplexity", help="Find the cut: 1.1x that of the model, or 25, a perplexity of 25."),
]
MethodName = Annotated[
    str | None,
    typer.Option(
        "--method", help="plain (no data; the default), whitened or refit (need --calibration).", show_default=False
    ),
]


def compress(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A model folder, or a name such as smollm2.",
            show_default=False,
            callback=require_model,
        ),
    ],
    changes: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Other options of fw.WeLore, such as storage=factored."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The folder to make; default: MODEL-small.", show_default=False)
    ] = None,
    rank_reduction: Annotated[
        float | None, typer.Option("--rank-reduction", help="Share of all ranks to drop; 0.5 without any budget.")
    ] = None,
    param_ratio: Annotated[
        float | None, typer.Option("--param-ratio", help="Share of all parameters to keep, instead.")
    ] = None,
    max_perplexity: MaxPerplexity = None,
    method: MethodName = None,
    calibration: Annotated[
        str | None, typer.Option("--calibration", help="Text to calibrate on: english, python or a file.")
    ] = None,
    evaluate: Annotated[
        str, typer.Option("--evaluate", help="Text to measure perplexity on; none measures none.")
    ] = "english",
    plan_only: Annotated[bool, typer.Option("--plan-only", help="Show what would be done and write nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Compress a model: each weight matrix gets a rank of its own and is stored in the smallest exact form.

    Perplexity is measured before and after (--evaluate none measures none) and shown, with a warning where the cut
    takes more than the spectra carry without data, before the result takes its place; the source is never changed.

    A folder of safetensors is read matrix by matrix, so it may be larger than the memory; a run that is interrupted
    goes on when it is started again. The result is a Hugging Face folder: fw.load_low_rank loads, fw train trains it.

    [bold]Examples[/bold]

    fw compress ./model --rank-reduction 0.5 --out ./small

    fw compress ./model --param-ratio 0.8 --method whitened --calibration text.txt --out ./small

    fw compress ./model --max-perplexity 1.1x --evaluate text.txt --out ./small

    fw compress smollm2 allocation=energy --plan-only
    """
    chosen = _options(changes, rank_reduction, param_ratio, method, searches=max_perplexity is not None)
    folder = out or Path(f"{Path(model).name}-small")
    corpus = None if evaluate == "none" else evaluate
    texts: dict[str, Any] = {"calibration": calibration, "evaluate": corpus}
    check_compression(model, folder, chosen, **texts, searches=max_perplexity is not None)
    from featherweight.methods.welore import WeLore
    from featherweight.text.compress import compress as run

    options = WeLore.parse(chosen.to_dict(), where="compress")
    with leave_cleanly("compress", [model, *(changes or [])]), _progress(silent=as_json) as progress:
        report = run(
            model,
            folder,
            options,
            **texts,
            max_perplexity=max_perplexity,
            plan_only=plan_only,
            progress=progress,
            tell=print_notice,
        )
        if as_json:
            facts: dict[str, Any] = {}
            for section in report.sections:
                facts |= getattr(section, "facts", {})
            print_json({"folder": None if plan_only else str(folder), **facts})
        else:
            print_result(report, None if plan_only else folder)


def _options(
    changes: list[str] | None,
    rank_reduction: float | None,
    param_ratio: float | None,
    method: str | None,
    *,
    searches: bool,
) -> WeLoreOptions:
    """Return the options of the cut; one that is looked for has a text, and without data little can go."""
    method = "whitened" if searches and method is None else method
    given = {"rank_reduction": rank_reduction, "param_ratio": param_ratio, "method": method}
    found = WeLoreOptions.parse({key: value for key, value in given.items() if value is not None}, where="compress")
    return found.override(changes or [], where="compress")


@contextmanager
def _progress(*, silent: bool) -> "Iterator[Progress | None]":
    """Show a bar on a terminal, and nothing elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console()
    if silent or not console.is_terminal:
        yield None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        tasks: dict[str, Any] = {}

        def show(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total)
            bar.update(tasks[what], completed=done)

        yield show
