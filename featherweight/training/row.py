"""One of several runs side by side: made, taken over from before, or failed; the others do not depend on it."""

import gc
from collections.abc import Sequence
from pathlib import Path

import torch

from featherweight.training.console import ConsoleProgress
from featherweight.training.events import Callback
from featherweight.training.metrics import read_metrics
from featherweight.training.recipe import Recipe
from featherweight.training.run import train
from featherweight.training.summary import Lines, Summary

Outcome = tuple[Summary, Lines]
"""What came out of a run, and the lines of its metrics file."""


def run_row(
    name: str,
    recipe: Recipe,
    folder: Path,
    resume: bool,
    callbacks: Sequence[Callback] | None,
    survives: tuple[type[Exception], ...],
) -> Outcome | Exception:
    """Train one row and return its outcome, or the error that ended it.

    Args:
        name: for the progress.
        recipe: of the row.
        folder: of its run.
        resume: a run that stands in the folder is taken over, finished or not.
        callbacks: listeners; None shows the progress on standard output.
        survives: errors that are results; all others are raised.
    """
    listeners = [ConsoleProgress(name)] if callbacks is None else callbacks
    goes_on = resume and (folder / "recipe.yaml").is_file()
    try:
        summary = train(recipe, out=folder, resume=goes_on, callbacks=listeners).summary
        return summary, read_metrics(folder / "metrics.jsonl")
    except survives as error:
        return _without_frames(error)
    finally:
        _release_memory()


def _without_frames(error: Exception) -> Exception:
    """Return an error without the frames that it and its causes passed through, which would keep the model alive."""
    one: BaseException | None = error
    while one is not None:
        one.__traceback__, one = None, one.__cause__ or one.__context__
    return error


def _release_memory() -> None:
    """Free the model of the row that is done, which reference cycles keep alive, before the next one is built."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
