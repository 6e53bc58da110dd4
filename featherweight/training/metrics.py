"""The metrics of a run as a file: one JSON object per line, written as they happen.

A line has `event` ("step" or "evaluate"), `step`, and numbers; a number that is not finite is null, which strict
JSON readers accept.
"""

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from featherweight.config import write_atomically
from featherweight.errors import ConfigError
from featherweight.training.events import Callback, Event

SMOOTHING_SHARE = 0.1
"""The training loss of a run is the mean over this share of its last steps: a single micro-batch says little."""


class MetricsFile(Callback):
    """Writes every step and evaluation of a run; a resumed run continues the file from the step where it starts.

    Args:
        path: the file, for example runs/demo/metrics.jsonl.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: IO[str] | None = None
        self._evaluated: set[int] = set()

    def on_start(self, event: Event) -> None:
        """Open the file, without the lines of steps that a resumed run will make again."""
        known = [line for line in read_metrics(self.path) if line["step"] <= event.step] if event.step else []
        self._evaluated = {line["step"] for line in known if line["event"] == "evaluate"}
        write_atomically(self.path, "".join(f"{json.dumps(line)}\n" for line in known))
        self._file = open(self.path, "a", encoding="utf-8")

    def on_step(self, event: Event) -> None:
        """Append the metrics of a step."""
        self._append("step", event)

    def on_evaluate(self, event: Event) -> None:
        """Append the metrics of an evaluation, unless a resumed run makes it again."""
        if event.step not in self._evaluated:
            self._append("evaluate", event)

    def on_end(self, event: Event) -> None:
        """Close the file."""
        if self._file is not None:
            # Only what `_append` has already complained of can be left to write.
            with suppress(OSError):
                self._file.close()

    def _append(self, kind: str, event: Event) -> None:
        if self._file is not None:
            line = {
                "event": kind,
                "step": event.step,
                **{name: to_json(value) for name, value in event.metrics.items()},
            }
            try:
                self._file.write(f"{json.dumps(line)}\n")
                self._file.flush()
            except OSError as error:
                raise ConfigError(
                    f"run: metrics={self.path} cannot be written ({error.strerror}); expected a disk with free space. "
                    "Free some space, then resume from the last checkpoint, if there is one."
                ) from error


def to_json(value: float) -> float | None:
    """Return the number, or None if it is NaN or infinite, for which JSON has no word."""
    return value if math.isfinite(value) else None


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a metrics file; a missing file has none, and a last line cut off by a kill is left out."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1] if line]


def curve(
    lines: Sequence[Mapping[str, Any]], event: str, name: str, *, items: str = "tokens"
) -> tuple[list[float], list[float]]:
    """Return one metric over the items (tokens, or what else the task counts) seen.

    Args:
        lines: of a metrics file.
        event: "step" or "evaluate".
        name: of the metric; lines without it, or with null, are left out.
        items: key of the count (`Words.count_key`); older files say tokens whatever their task counts.

    Returns:
        Counts and values, equally long. A step's count stands in its line; an evaluation has that of the step before
        it.
    """
    seen, xs, ys = 0.0, [], []
    for line in lines:
        if line["event"] == "step":
            seen = line[items] if items in line else line["tokens"]
        if line["event"] == event and line.get(name) is not None:
            xs.append(seen)
            ys.append(line[name])
    return xs, ys


def smooth(values: Sequence[float], share: float = 0.05) -> list[float]:
    """Return the running mean over the last `share` of all values (at least one), for a picture that shows the trend.

    Example:
        >>> smooth([4.0, 2.0, 0.0], share=0.67)
        [4.0, 3.0, 1.0]
    """
    width = max(1, int(share * len(values)))
    sums, total = [0.0], 0.0
    for value in values:
        total += value
        sums.append(total)
    return [(sums[end] - sums[max(0, end - width)]) / min(end, width) for end in range(1, len(values) + 1)]


def final_training_loss(lines: Sequence[Mapping[str, Any]]) -> float | None:
    """Return the mean loss of the last tenth of the steps, or None if there were none."""
    losses = [line["loss"] for line in lines if line["event"] == "step"]
    last = losses[-max(1, int(SMOOTHING_SHARE * len(losses))) :]
    return sum(last) / len(last) if last else None
