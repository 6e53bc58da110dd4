"""The option that names the optimizers of a comparison, and its former spelling."""

from typing import Annotated

import typer
from rich.console import Console

Optimizers = Annotated[str, typer.Option("--optimizers", "-m", help="Optimizers, separated by commas.")]
FormerSpelling = Annotated[str | None, typer.Option("--methods", hidden=True)]
"""`--methods`, from before methods were changes of a model; it works on, with a hint."""


def given_names(optimizers: str, former: str | None) -> str:
    """Return the names under either spelling, with a hint on standard error for the former one."""
    if former is None:
        return optimizers
    Console(stderr=True).print("hint: --methods is called --optimizers now; both work", highlight=False)
    return former
