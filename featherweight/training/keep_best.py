"""The weights of the best evaluation of a run, kept beside its checkpoints, and a run that ends when none gets better.

Both judge by the lines of metrics.jsonl, so a resumed run knows what its former part has seen.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from featherweight.training.best import BestMetric, EarlyStop, best_evaluation, waited_in_vain
from featherweight.training.checkpoint import Checkpoints
from featherweight.training.events import Callback, Event
from featherweight.training.interrupt import StopRequest
from featherweight.training.metrics import read_metrics, to_json

if TYPE_CHECKING:
    from featherweight.training.loop import Loop


class KeepBest(Callback):
    """Keeps the weights of the best evaluation in the folder `best` of a run.

    An earlier best one goes only when an ordinary checkpoint is later than the new one: a run that dies resumes from
    there, and must then find what was the best until there.

    Args:
        options: what is better.
        loop: whose model is kept.
        folder: of the run.
    """

    def __init__(self, options: BestMetric, loop: "Loop", folder: Path) -> None:
        self.options, self._loop, self._folder = options, loop, folder
        self._kept = Checkpoints(folder / "best", keep=None)
        self._regular = Checkpoints(folder / "checkpoints")
        self.value: float | None = None

    def on_start(self, event: Event) -> None:
        """Find the best evaluation of the former part of the run; those that a resumed run makes again go."""
        for step in self._kept.steps():
            if step > event.step:
                self._kept.forget(step)
        kept = set(self._kept.steps())
        best = best_evaluation([line for line in self._lines() if line["step"] in kept], self.options)
        self.value = None if best is None else self.options.value(best)

    def on_evaluate(self, event: Event) -> None:
        """Keep the weights if they are the best."""
        if event.step == 0:
            return
        value = self.options.value({name: to_json(one) for name, one in event.metrics.items()})
        if value is None or self.value is not None and self.options.gain(value, self.value) <= 0:
            return
        methods = [method.state_dict(self._loop.model) for method in self._loop.methods]
        self._kept.save(event.step, self._loop.model, {"methods": methods}, event.recipe.to_dict())
        self.value = value
        self._forget_older(event.step)

    def restore(self) -> tuple[int, dict[str, Any]] | None:
        """Give the model the best weights, and return their step and the metrics of that evaluation.

        None, and the weights stay those of the last step, if no evaluation had a finite value.

        Raises:
            CheckpointError: if they cannot be read.
        """
        kept = set(self._kept.steps())
        best = best_evaluation([line for line in self._lines() if line["step"] in kept], self.options)
        if best is None:
            return None
        state = self._kept.at(best["step"]).load(self._loop.model)
        for method, method_state in zip(self._loop.methods, state["methods"], strict=True):
            method.load_state_dict(self._loop.model, method_state)
        for step in kept - {best["step"]}:
            self._kept.forget(step)
        return best["step"], {name: value for name, value in best.items() if name not in ("event", "step")}

    def _forget_older(self, newest: int) -> None:
        saved = max(self._regular.steps(), default=0)
        still_needed = max((step for step in self._kept.steps() if step <= saved), default=None)
        for step in self._kept.steps():
            if step not in (newest, still_needed):
                self._kept.forget(step)

    def _lines(self) -> list[dict[str, Any]]:
        return read_metrics(self._folder / "metrics.jsonl")


class StopEarly(Callback):
    """Ends a run when so many evaluations in a row were no better.

    Args:
        options: how long to wait, and what is better.
        stop: is told.
        folder: of the run.
    """

    def __init__(self, options: EarlyStop, stop: StopRequest, folder: Path) -> None:
        self.options, self._stop, self._folder = options, stop, folder

    def on_start(self, event: Event) -> None:
        """Judge the former part of a resumed run."""
        if event.step:
            self.on_evaluate(event)

    def on_evaluate(self, event: Event) -> None:
        """Judge the evaluations so far; the newest one stands in the file already."""
        if event.step == 0:
            return
        waited = waited_in_vain(read_metrics(self._folder / "metrics.jsonl"), self.options)
        if waited >= self.options.patience:
            self._stop.reason = (
                f"early_stopping: {self.options.metric} has not become better by more than "
                f"{self.options.threshold:g} in {waited} evaluations; the run ends after step {event.step} of "
                f"{event.recipe.steps}. To go on, resume it with a larger early_stopping.patience."
            )
