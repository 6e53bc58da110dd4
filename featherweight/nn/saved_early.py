"""Tensors that an autograd function keeps for its backward pass, handed over before it computes its output.

`ctx.save_for_backward` hands them over after `forward` has returned. A checkpoint that repeats a forward pass stops as
soon as it has seen everything that the backward pass needs; if that is the input of our function, it then has no reason
to compute the output, which nobody reads. What follows and does need the output (a norm behind a feed-forward layer)
makes the checkpoint go on as usual.
"""

from typing import Any

import torch
from torch import Tensor


class SavedEarly:
    """Keeps tensors as autograd would, hooks on saved tensors included.

    Args:
        tensors: what to keep; None stays None.
    """

    def __init__(self, *tensors: Tensor | None) -> None:
        detached = [None if tensor is None else tensor.detach() for tensor in tensors]
        with torch.enable_grad():
            self._node: Any = _Keep.apply(torch.empty(0, requires_grad=True), detached).grad_fn

    def tensors(self, *, release: bool) -> tuple[Tensor | None, ...]:
        """Return the tensors.

        Args:
            release: forget them, unless the graph may be walked again.
        """
        tensors: tuple[Tensor | None, ...] = self._node.saved_tensors
        if release:
            self._node = None
        return tensors


class _Keep(torch.autograd.Function):
    """A node that exists for what it has saved."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, tensors: list[Tensor | None]) -> Tensor:
        ctx.save_for_backward(*tensors)
        return anchor.clone()

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[None, None]:
        raise AssertionError("nothing is differentiated through it")
