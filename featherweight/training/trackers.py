"""Other places to log to, by way of accelerate's trackers: TensorBoard and whatever else is installed."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from featherweight.training.events import Callback, Event
from featherweight.training.tracker_names import require_trackers


class Trackers(Callback):
    """Sends the metrics of steps (every `log_every`) and evaluations to trackers.

    Args:
        names: of accelerate's trackers, such as ["tensorboard"].
        folder: where trackers that write files put them.
        project: what services with projects call this one; the run has the name of the folder there.

    Raises:
        ConfigError: if accelerate knows no tracker of a name.
        MissingExtraError: if its package is not installed.
    """

    def __init__(self, names: list[str], folder: Path, *, project: str = "tracker") -> None:
        require_trackers(names)
        from accelerate import Accelerator

        # Trackers that write files name a folder in that of the run by it.
        self._project = "tracker" if {*names} & {"tensorboard", "dvclive"} else project
        options = {"wandb": {"name": folder.name, "dir": str(folder)}, "trackio": {"name": folder.name}}
        self._options = {name: one for name, one in options.items() if name in names}
        self._accelerator = Accelerator(mixed_precision="no", log_with=names, project_dir=folder)

    def on_start(self, event: Event) -> None:
        """Open the trackers with the recipe as their configuration."""
        config = flatten(event.recipe.to_dict())
        self._accelerator.init_trackers(self._project, config=config, init_kwargs=self._options)

    def on_step(self, event: Event) -> None:
        """Log a step."""
        if event.step % event.recipe.log_every == 0:
            self._log("train", event)

    def on_evaluate(self, event: Event) -> None:
        """Log an evaluation."""
        self._log("held_out", event)

    def on_end(self, event: Event) -> None:
        """Close the trackers."""
        for tracker in self._accelerator.trackers:  # end_training() would end the group of several processes, too
            tracker.finish()

    def _log(self, group: str, event: Event) -> None:
        self._accelerator.log({f"{group}/{name}": value for name, value in event.metrics.items()}, step=event.step)


def flatten(mapping: Mapping[str, Any], prefix: str = "") -> dict[str, str | float | bool]:
    """Return nested settings as one level, with dots in the keys and text for what is no number.

    Example:
        >>> flatten({"steps": 4, "optimizer": {"lr": 0.1, "betas": [0.9, 0.95]}})
        {'steps': 4, 'optimizer.lr': 0.1, 'optimizer.betas': '[0.9, 0.95]'}
    """
    flat: dict[str, str | float | bool] = {}
    for key, value in mapping.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value if isinstance(value, (bool, int, float, str)) else str(value)
    return flat
