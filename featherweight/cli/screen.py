"""What the commands share on the screen: reports, errors, and the way out of an interruption.

Reports and progress go to standard output, everything else to standard error, so that `--json` leaves one JSON object
to pipe.
"""

import json
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from featherweight.cli import completion
from featherweight.cli.given import require_recipe
from featherweight.cli.own_code import import_files

if TYPE_CHECKING:
    from featherweight.report import Report
    from featherweight.training.interrupt import TrainingInterrupted

    FolderOf = Callable[[TrainingInterrupted], Path]

RecipeFile = Annotated[
    Path,
    typer.Argument(
        metavar="RECIPE", help="The recipe: a YAML or JSON file.", show_default=False, callback=require_recipe
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE",
        help="Changes of the recipe, such as optimizer.rank=64.",
        show_default=False,
        autocompletion=completion.recipe_keys,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
Resume = Annotated[
    bool, typer.Option("--resume", help="Go on from the newest checkpoint in --out; the result is the same bit by bit.")
]
Imports = Annotated[
    list[Path] | None,
    typer.Option(
        "--import",
        help="A Python file that registers tasks, optimizers or methods of your own; may be given several times.",
        show_default=False,
        callback=import_files,
    ),
]


def import_words(imports: Sequence[Path] | None) -> list[str]:
    """Return the options that name these files again."""
    return [word for path in imports or [] for word in ("--import", str(path))]


def print_error(sentence: str) -> None:
    """Print what went wrong on standard error."""
    Console(stderr=True).print(f"[bold red]error:[/bold red] {_escape(sentence)}", highlight=False, soft_wrap=True)


def print_notice(sentence: str) -> None:
    """Print what a user should know on standard error."""
    Console(stderr=True).print(_escape(sentence), highlight=False, soft_wrap=True)


def print_result(report: "Report", folder: Path | None) -> None:
    """Print a report and where its page lies."""
    console = Console()
    report.print_terminal(console)
    if folder is not None:
        console.print(f"\nReport: {_escape(str(folder / 'report.html'))}", highlight=False, soft_wrap=True)


def print_json(content: dict[str, Any]) -> None:
    """Print one JSON object on standard output."""
    json.dump(content, sys.stdout, indent=2, default=str)
    sys.stdout.write("\n")


@contextmanager
def leave_cleanly(command: str, words: Sequence[str] | None, run_folder: "FolderOf | None" = None) -> Iterator[None]:
    """Turn an interruption of the body into exit code 130, and say how to go on.

    Args:
        command: name of the command.
        words: its arguments but for --out and --resume; None: the recipe in the folder to resume.
        run_folder: gives the folder to resume, from the interruption; None for commands that cannot be resumed.
    """
    from featherweight.training.interrupt import TrainingInterrupted

    try:
        yield
    except KeyboardInterrupt as interruption:
        if os.environ.get("RANK", "0") != "0":  # the first of several processes speaks
            raise typer.Exit(130) from None
        if isinstance(interruption, TrainingInterrupted) and run_folder is not None:
            folder = run_folder(interruption)
            words = [str(folder / "recipe.yaml")] if words is None else words
            again = shlex.join(["fw", command, *words, "--out", str(folder), "--resume"])
            lines = f"{_escape(str(interruption))}\nResume with: {_escape(again)}"
            Console(stderr=True).print(lines, highlight=False, soft_wrap=True)
        else:
            print_error("interrupted")
        raise typer.Exit(130) from None


def _escape(text: str) -> str:
    """Keep rich from reading square brackets of a message as markup."""
    from rich.markup import escape

    return escape(text)
