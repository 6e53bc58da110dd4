"""Holds a run to its plan: stops it after the second step if reality needs more than was planned."""

from featherweight.errors import DeviceError
from featherweight.planner.advice import changes
from featherweight.planner.target import Target
from featherweight.report import format_bytes
from featherweight.training.estimate import MemoryEstimate
from featherweight.training.events import Callback, Event

TOLERANCE = 0.10
"""Share by which a measured peak may exceed the predicted one."""


class PlanCheck(Callback):
    """Compares the measured peak of the steps with the predicted one; the recipe's `memory_steps` must hold the second.

    Args:
        estimate: of the recipe that runs, for the device that it runs on.
        target: that device.
    """

    def __init__(self, estimate: MemoryEstimate, target: Target) -> None:
        self.estimate = estimate
        self.target = target
