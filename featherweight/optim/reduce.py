"""Where gradients of several processes meet: what is reduced is the core, not the gradient.

Everything that a layer-wise optimizer keeps of a gradient (core, sketch, norm probe) is linear in it, so the mean over
processes of these small tensors is what the mean gradient would give. What implements this on `torch.distributed`
stands above (`featherweight.distributed`); it is attached to a model, where `layerwise` finds it.
"""

import weakref
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor, nn

BUCKET_BYTES = 4 << 20
"""What is collected before it is averaged: hundreds of small collectives cost far more than one of their size."""


class Reducer(Protocol):
    """Averages tensors over the processes that train one model; all of them make the same calls in the same order."""

    @property
    def world_size(self) -> int:
        """Number of processes."""
        ...

    def mean_(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors by their means over the processes, in place.

        Args:
            tensors: cores, sketches, norm probes, or gradients of parameters without subspace; real and contiguous.
        """
        ...

    def require_same(self, names: Sequence[str]) -> None:
        """Refuse to go on if the processes are about to average different things, before anything waits for them.

        Args:
            names: of the parameters whose sums come next, in order.
        Raises:
            ConfigError: names the first difference, on all processes.
        """
        ...


class LocalReducer:
    """One process: its tensors are the means already."""

    world_size = 1

    def mean_(self, tensors: Sequence[Tensor]) -> None:
        """Leave the tensors as they are."""

    def require_same(self, names: Sequence[str]) -> None:
        """Agree with itself."""

    def all_reduce(self, tensor: Tensor, group: Mapping[str, Any]) -> None:
        """Leave the tensor as it is; the older name of `mean_`, for one tensor."""


_attached: "weakref.WeakKeyDictionary[nn.Module, Reducer]" = weakref.WeakKeyDictionary()


def attach_reducer(model: nn.Module, reducer: Reducer) -> None:
    """Let layer-wise optimizers of a model find their reducer; copies of the model have none."""
    _attached[model] = reducer


def attached_reducer(model: nn.Module) -> Reducer | None:
    """Return the reducer that was attached to a model, or None."""
    return _attached.get(model)


class SingleReducer:
    """A reducer of the older form, which averages one tensor at a time, as one of the present form.

    Args:
        reducer: has `world_size` and ``all_reduce(tensor, group)``.
    """

    def __init__(self, reducer: Any) -> None:
        self.reducer = reducer

    @property
    def world_size(self) -> int:
        """Number of processes."""
        return int(self.reducer.world_size)

    def mean_(self, tensors: Sequence[Tensor]) -> None:
        """Average one tensor after the other."""
        for tensor in tensors:
            self.reducer.all_reduce(tensor, {})

    def require_same(self, names: Sequence[str]) -> None:
        """Trust the user: there is nothing to compare with."""


def as_reducer(reducer: Any) -> Reducer:
    """Return a reducer of the present form for one of either form."""
    present: Reducer = reducer if callable(getattr(reducer, "mean_", None)) else SingleReducer(reducer)
    return present
