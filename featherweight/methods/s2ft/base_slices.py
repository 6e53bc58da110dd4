"""Writing changes of channels into a weight, so that the weight's own bytes come back exactly.

The slices of the base that are about to change are copied first. Taking a change out writes them back; nothing is ever
subtracted. Several changes are summed in float32 (or wider) on the union of their channels and rounded once.
Shapes: S selected channels of one change, K the other axis, U channels of the union.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from featherweight.nn.channel_delta import Axis


class ChannelChange(NamedTuple):
    """One change: ``weight[:, indices] += scaling * delta.T`` on the input axis, rows on the output axis."""

    axis: Axis
    indices: Tensor
    """(S,) integers."""
    delta: Tensor
    """(S, K)."""
    scaling: float = 1.0


@dataclass
class BaseSlices:
    """Slices of a weight as they were before changes were written into it."""

    axis: Axis
    indices: Tensor
    """(U,) int64, ascending."""
    values: Tensor
    """(U, K), one row for each channel."""

    def restore_(self, weight: Tensor) -> None:
        """Write the slices back into the (out_features, in_features) weight."""
        # The weight may have moved since, or have been cast.
        _rows(weight, self.axis).index_copy_(0, self.indices.to(weight.device), self.values.to(weight))


def write_(weight: Tensor, changes: Sequence[ChannelChange]) -> list[BaseSlices]:
    """Write the sum of some changes into a weight.

    Args:
        weight: (out_features, in_features), any strides; must hold none of the changes yet.
        changes: on either axis.
    Returns:
        What `restore_` takes; empty if there is no change.
    Cost: reads and writes U*K elements for each axis; the rest of the weight is not touched.
    Example:
        >>> weight = torch.zeros(2, 3, dtype=torch.bfloat16)
        >>> slices = write_(weight, [ChannelChange("input", torch.tensor([1]), torch.tensor([[1.0, 2.0]]))])
        >>> weight.tolist()
        [[0.0, 1.0, 0.0], [0.0, 2.0, 0.0]]
        >>> restore_(weight, slices)
        >>> weight.any().item()
        False
    """
    slices = []
    axes: tuple[Axis, Axis] = ("input", "output")
    for axis in axes:
        on_axis = [change for change in changes if change.axis == axis and len(change.indices)]
        if on_axis:
            union, summed = sum_changes(on_axis)
            rows = _rows(weight, axis)
            base = rows.index_select(0, union)
            slices.append(BaseSlices(axis, union, base))
            wide = torch.promote_types(base.dtype, summed.dtype)
            rows.index_copy_(0, union, (base.to(wide) + summed.to(wide)).to(base.dtype))
    return slices


def restore_(weight: Tensor, slices: Sequence[BaseSlices]) -> None:
    """Undo `write_`: rows and columns meet in some entries, so the last slice written goes first."""
    for one in reversed(slices):
        one.restore_(weight)


def sum_changes(changes: Sequence[ChannelChange]) -> tuple[Tensor, Tensor]:
    """Return the union of channels of changes of one axis, and the sum of the changes on it.

    Returns:
        (U,) int64 ascending and (U, K) in the widest dtype of the changes, at least float32.
    """
    dtype = torch.float32
    for change in changes:
        dtype = torch.promote_types(dtype, change.delta.dtype)
    if len(changes) == 1:
        (only,) = changes
        delta = only.delta.detach().to(dtype)
        return only.indices.long(), delta if only.scaling == 1.0 else delta * only.scaling
    union = torch.cat([change.indices.long() for change in changes]).unique()
    summed = changes[0].delta.new_zeros((len(union), changes[0].delta.shape[1]), dtype=dtype)
    for change in changes:
        places = torch.searchsorted(union, change.indices.long())
        # Channels of one change are distinct, so nothing is added twice and the order of additions is that of
        # `changes`.
        summed.index_add_(0, places, change.delta.detach().to(dtype), alpha=change.scaling)
    return union, summed


def _rows(weight: Tensor, axis: Axis) -> Tensor:
    """Return a view whose rows are the channels of an axis."""
    return weight.t() if axis == "input" else weight
