"""Holds a run to what was predicted: stops it after its second step if reality needs much more memory."""

from featherweight.errors import DeviceError
from featherweight.report import format_bytes
from featherweight.training.estimate import MemoryEstimate
from featherweight.training.events import Callback, Event

TOLERANCE = 0.10
"""Share by which a measured peak may exceed the predicted one."""


class PlanCheck(Callback):
    """Compares the measured peak of the first steps with the predicted one.

    Args:
        estimate: of the recipe that runs, for the kind of device that it runs on.
    Raises:
        DeviceError: from `on_step`, after the second step, if the peak is more than 10 % above the prediction; it names
            the categories that grew.
    """

    def __init__(self, estimate: MemoryEstimate) -> None:
        self.estimate = estimate

    def on_start(self, event: Event) -> None:
        """Put the prediction into the run's report, activations included."""
        if event.footprint is not None:
            maxima = self.estimate.timeline.max_by_category(2)
            event.footprint.predicted = {str(name): count for name, count in maxima.items()}
            event.footprint.predicted_peak_bytes = self.estimate.timeline.peak(2).size_bytes

    def on_step(self, event: Event) -> None:
        """Compare, once the second step is measured."""
        footprint = event.footprint
        if event.step != 2 or footprint is None or not footprint.measured:
            return
        predicted = self.estimate.timeline.peak(2)
        if footprint.peak_bytes <= (1 + TOLERANCE) * predicted.size_bytes:
            return
        grown = {
            name: count - predicted.by_category.get(name, 0)  # type: ignore[call-overload]
            for name, count in footprint.at_peak.items()
        }
        parts = ", ".join(f"{name} {format_bytes(count):>}" for name, count in _largest(grown))
        raise DeviceError(
            f"plan: peak={format_bytes(footprint.peak_bytes)} after step 2 is more than {TOLERANCE:.0%} above the "
            f"{format_bytes(predicted.size_bytes)} that were predicted; expected the prediction. More than planned: "
            f"{parts}. Plan with the recipe that runs, or train without a plan."
        )


def _largest(grown: dict[str, int]) -> list[tuple[str, int]]:
    return sorted(((name, count) for name, count in grown.items() if count > 0), key=lambda pair: -pair[1])[:3]
