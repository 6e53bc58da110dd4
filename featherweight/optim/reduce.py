"""Where gradients of several processes meet: what is reduced is the core, not the gradient.

Everything that a layer-wise optimizer keeps of a gradient (core, sketch, norm probe) is linear in it, so the mean over
processes of these small tensors is what the mean gradient would give.
"""

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor


class Reducer(Protocol):
    """Averages tensors over the processes that train one model."""

    @property
    def world_size(self) -> int:
        """Number of processes."""
        ...

    def all_reduce(self, tensor: Tensor, group: Mapping[str, Any]) -> None:
        """Replace a tensor by its mean over the processes, in place.

        Args:
            tensor: core, sketch, norm probe, or the gradient of a parameter without subspace.
            group: parameter group that it belongs to.
        """
        ...


class LocalReducer:
    """One process: its tensors are the means already."""

    world_size = 1

    def all_reduce(self, tensor: Tensor, group: Mapping[str, Any]) -> None:
        """Leave the tensor as it is."""
