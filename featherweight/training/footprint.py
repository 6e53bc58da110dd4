"""The memory of a training step by category: what the formulas predict, and what was measured.

Predicted, in bytes: weights are numel * element size over the distinct parameters, codes and scales where they are int8
(and one element for the parameter that stands for them) or of four bits; the optimizer says what its state
and, layer-wise or not, the gradients take. Activations depend on the whole graph and are only measured.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor, nn

from featherweight.optim.sharding import shard_of
from featherweight.quant.int8_weight import int8_weight_of
from featherweight.quant.weight4bit import statistics_of
from featherweight.unwrap import local_of

CATEGORIES = ("weights", "gradients", "optimizer_state", "activations")
"""The four terms that methods cut, in the order of tables and pictures."""


class StatefulOptimizer(Protocol):
    """An optimizer that knows its bytes before its first step, as those of `featherweight.optim` do."""

    def state_bytes(self) -> int | None:
        """Return the bytes of all state tensors; None if nobody knows them before the first step."""
        ...

    def gradient_bytes(self) -> int:
        """Return the bytes of gradients at the peak of a step."""
        ...


def predict_bytes(model: nn.Module, optimizer: StatefulOptimizer) -> dict[str, int]:
    """Return the bytes of weights, gradients and optimizer state by formula.

    Args:
        model: tied parameters count once.
        optimizer: built for this model; it may not have made a step yet.
    """
    found = {
        "weights": sum(_weight_bytes(one) for one in model.parameters()),
        "gradients": optimizer.gradient_bytes(),
        "optimizer_state": optimizer.state_bytes(),
    }
    return {name: count for name, count in found.items() if count is not None}


def _weight_bytes(parameter: Tensor) -> int:
    shard = shard_of(parameter)
    if shard is not None and shard.rows is not None:
        return parameter.element_size()  # its codes and scales are parameters of their own
    int8 = int8_weight_of(parameter)
    numel = local_of(parameter).numel() if int8 is None else 1
    behind = sum(one.nbytes for one in statistics_of(parameter).values())
    return numel * parameter.element_size() + (0 if int8 is None else int8.nbytes) + behind


@dataclass
class Footprint:
    """Predicted and measured bytes of the steps of one run."""

    predicted: dict[str, int] = field(default_factory=dict)
    """By category, from `predict_bytes`."""
    measured: dict[str, int] = field(default_factory=dict)
    """Each category's own largest value over the measured steps; empty if none was measured."""
    at_peak: dict[str, int] = field(default_factory=dict)
    """By category at the moment when the sum was largest; adds up to `peak_bytes`."""
    peak_bytes: int = 0
    """The largest sum over the measured steps."""
    predicted_peak_bytes: int = 0
    """The same from a simulation; 0 if none was made."""

    def include(self, peak_by_category: Mapping[Any, int], max_by_category: Mapping[Any, int]) -> None:
        """Take in the measurement of one more step."""
        peak_bytes = sum(peak_by_category.values())
        if peak_bytes > self.peak_bytes:
            self.peak_bytes, self.at_peak = peak_bytes, dict(peak_by_category)
        for name, count in max_by_category.items():
            self.measured[name] = max(self.measured.get(name, 0), count)

    def to_dict(self) -> dict[str, Any]:
        """Return plain dicts and numbers; `Footprint(**footprint.to_dict())` is equal."""
        return {
            "predicted": dict(self.predicted),
            "measured": dict(self.measured),
            "at_peak": dict(self.at_peak),
            "peak_bytes": self.peak_bytes,
            "predicted_peak_bytes": self.predicted_peak_bytes,
        }
