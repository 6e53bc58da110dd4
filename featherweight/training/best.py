"""Which evaluation is the best, and when waiting for a better one is over: decided on the lines of the metrics file.

Only evaluations after a step count; the untrained model is none that a run could keep.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import Field

from featherweight.config import Config
from featherweight.errors import ConfigError, did_you_mean

_RISING = ("accuracy", "f1", "matthews", "margin", "iou", "precision", "recall")
_FALLING = ("loss", "perplexity", "error", "l2", "h1", "mse", "mae")
"""Words in the names of metrics that say which direction is the good one."""

Direction = Literal["min", "max"]


class BestMetric(Config):
    """What makes one evaluation better than another."""

    metric: str = "held_out_loss"
    """Which of the task's metrics: held_out_loss, perplexity, accuracy, ..."""
    direction: Direction | None = None
    """min: less is better. max: more is. None: what the name says (a loss falls, an accuracy rises)."""

    def resolved(self) -> Direction:
        """Return the direction.

        Raises:
            ConfigError: if neither the options nor the name of the metric says it.
        """
        if self.direction is not None:
            return self.direction
        if any(word in self.metric for word in _RISING):
            return "max"
        if any(word in self.metric for word in _FALLING):
            return "min"
        raise ConfigError(
            f"recipe: metric={self.metric} does not say whether more of it is better; expected a direction. Add "
            "direction: max, or direction: min."
        )

    def value(self, metrics: Mapping[str, Any]) -> float | None:
        """Return the metric of an evaluation; None if it is not finite.

        Raises:
            ConfigError: if the task measures nothing of this name.
        """
        if self.metric not in metrics:
            known = [name for name in metrics if name not in ("event", "step")]
            raise ConfigError(
                f"recipe: metric={self.metric} is none that the task measures; expected one of {', '.join(known)}. "
                f"{did_you_mean(self.metric, known)}"
            )
        found = metrics[self.metric]
        return None if found is None else float(found)

    def gain(self, value: float, over: float) -> float:
        """Return by how much a value is better than another; negative if it is worse."""
        return over - value if self.resolved() == "min" else value - over


class EarlyStop(BestMetric):
    """When a run ends because it gets no better."""

    patience: int = Field(default=3, gt=0)
    """Evaluations in a row without a better one after which the run ends."""
    threshold: float = Field(default=0.0, ge=0)
    """An evaluation counts as better if it gains more than this, in the unit of the metric."""


Line = Mapping[str, Any]


def evaluations(lines: Sequence[Line]) -> list[Line]:
    """Return the evaluations after a step, each step once, in order."""
    found = {line["step"]: line for line in lines if line["event"] == "evaluate" and line["step"] > 0}
    return [found[step] for step in sorted(found)]


def best_evaluation(lines: Sequence[Line], options: BestMetric) -> Line | None:
    """Return the line of the best evaluation, the first of equal ones; None if none has a finite value.

    Example:
        >>> lines = [{"event": "evaluate", "step": step, "held_out_loss": loss} for step, loss in ((1, 2.0), (2, 3.0))]
        >>> best_evaluation(lines, BestMetric())["step"]
        1
    """
    best, best_value = None, 0.0
    for line in evaluations(lines):
        value = options.value(line)
        if value is not None and (best is None or options.gain(value, best_value) > 0):
            best, best_value = line, value
    return best


def waited_in_vain(lines: Sequence[Line], options: EarlyStop) -> int:
    """Return how many of the last evaluations gained no more than the threshold over the best one before them.

    Example:
        >>> lines = [{"event": "evaluate", "step": step, "held_out_loss": 2.0} for step in range(1, 4)]
        >>> waited_in_vain(lines, EarlyStop())
        2
    """
    waited, best = 0, None
    for line in evaluations(lines):
        value = options.value(line)
        if value is not None and (best is None or options.gain(value, best) > options.threshold):
            waited, best = 0, value
        else:
            waited += 1
    return waited
