"""What the first loss of a run says: a model that is called pretrained and guesses is told to the user at once."""

from collections.abc import Mapping, Sequence
from typing import Any

from featherweight.training.task import Task

NEAR_GUESSING = 0.9
"""Share of the loss of guessing from which a model counts as one that guesses. Random weights begin at 1.0 and a little
above; the smallest pretrained models begin near 0.5 on text that they have never seen."""


def guessing_notice(task: Task, loss: float | None) -> str | None:
    """Return a warning if a model that is called pretrained begins with about the loss of guessing.

    Args:
        task: of the run.
        loss: of an item before training, or of the first step; None if nobody measured it.
    """
    guessing = task.guessing_loss
    if loss is None or guessing is None or not task.is_pretrained(getattr(task, "config", None)):
        return None
    if not loss >= NEAR_GUESSING * guessing:
        return None
    return (
        f"The loss at the start, {loss:.2f}, is near {guessing:.2f}, the logarithm of the vocabulary: this model "
        "guesses although it is called pretrained. Its weights, its tokenizer or the template may not belong together; "
        "look at the rows by fw data inspect, and at the folder of the model."
    )


def start_loss(lines: Sequence[Mapping[str, Any]]) -> float | None:
    """Return the loss with which a run began: held-out before training, else of the first step; None if not there.

    Args:
        lines: its metrics file.
    Example:
        >>> start_loss([{"event": "step", "step": 1, "loss": 2.5}])
        2.5
    """
    first: float | None = None
    for line in lines:
        if line["event"] == "evaluate" and line["step"] == 0:
            held_out: float | None = line.get("held_out_loss")
            return held_out
        if line["event"] == "step" and line["step"] == 1:
            first = line.get("loss")
    return first
