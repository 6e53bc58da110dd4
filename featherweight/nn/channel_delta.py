"""A trained change of a few channels of a linear layer, and the partial back-propagation that pays for those alone.

A change is a dense (S, K) matrix, one row for each selected channel. On the input axis it changes S columns of the
weight: ``y = x W^T + x[..., I] @ D``, K = out_features, and the backward pass needs ``x[..., I]`` alone. On the output
axis it changes S rows: ``y[..., J] += x @ D^T``, K = in_features, and the backward pass needs all of x.
Shapes: T tokens (all leading axes together), M out_features, N in_features, S selected channels, B rows of a batch.
Source: arXiv 2412.06289, section 3.2. Differs from the official code: the slice of the input is a copy, because a view
keeps the whole input alive, and the channels are gathered where they are instead of being permuted to the front.
"""

from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

Axis = Literal["input", "output"]


def add_delta(y: Tensor, x: Tensor, delta: Tensor, indices: Tensor, axis: Axis, scaling: float = 1.0) -> Tensor:
    """Add what a change of some channels does to the output of a linear layer, by plain autograd.

    Args:
        y: (..., M), output of the layer without the change; not modified.
        x: (..., N), the layer's input.
        delta: (S, M) on the input axis, (S, N) on the output axis; cast to the dtype of `x`.
        indices: (S,) integers, the channels of the axis.
        axis: "input" changes columns of the weight, "output" rows.
        scaling: factor of the change.
    Returns:
        (..., M), dtype of `y`.
    Cost: 2*T*S*K FLOPs; on the input axis the backward pass keeps T*S elements of `x`, on the output axis all of it.
    Example:
        >>> x, weight, delta = torch.randn(5, 4), torch.randn(3, 4), torch.randn(2, 3)
        >>> changed = weight.clone()
        >>> changed[:, [0, 3]] += delta.T
        >>> y = add_delta(x @ weight.T, x, delta, torch.tensor([0, 3]), "input")
        >>> torch.allclose(y, x @ changed.T, atol=1e-5)
        True
    """
    scaled = (delta if scaling == 1.0 else delta * scaling).to(x.dtype)
    if axis == "input":
        selected = x.index_select(-1, indices)
        if x.dtype != y.dtype:
            return y + (selected @ scaled).to(y.dtype)
        # One rounding instead of two in 16 bits, and the same number as in training.
        return torch.addmm(y.flatten(0, -2), selected.flatten(0, -2), scaled).view(y.shape)
    return y.index_add(-1, indices, F.linear(x, scaled).to(y.dtype))


def changed_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    delta: Tensor,
    indices: Tensor,
    axis: Axis,
    *,
    scaling: float = 1.0,
    written: bool = False,
) -> Tensor:
    """Compute a frozen linear layer and the change of some of its channels in one step.

    Equals ``add_delta(F.linear(x, weight, bias), x, ...)``, whose gradients of `x` from the layer and from the change
    are two tensors of the size of `x`; here they are one.

    Args:
        x: (..., N).
        weight: (M, N), gets no gradient.
        bias: (M,) or None, gets no gradient.
        delta: (S, K), the trained change.
        indices: (S,) integers.
        axis: see `add_delta`.
        scaling: factor of the change.
        written: `weight` holds the change already; then `delta` only receives its gradient.
    Returns:
        (..., M).
    Cost: keeps T*S elements beyond what the frozen layer keeps on the input axis; backward 2*T*M*N + 4*T*S*K FLOPs.
    """
    result: Tensor = _ChangedLinear.apply(x, weight, bias, delta, indices, axis, scaling, written)
    return result


class _ChangedLinear(torch.autograd.Function):
    """The slow twin is `add_delta`; tests compare the two."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        delta: Tensor,
        indices: Tensor,
        axis: Axis,
        scaling: float,
        written: bool,
    ) -> Tensor:
        y = F.linear(x, weight, bias)
        needs_delta = ctx.needs_input_grad[3]
        selected = x.index_select(-1, indices) if axis == "input" and (needs_delta or not written) else None
        if not written:
            scaled = (delta if scaling == 1.0 else delta * scaling).to(x.dtype)
            if selected is None:
                y.index_add_(-1, indices, F.linear(x, scaled))
            else:
                y.view(-1, y.shape[-1]).addmm_(selected.flatten(0, -2), scaled)
        ctx.save_for_backward((x if selected is None else selected) if needs_delta else None, weight, delta, indices)
        ctx.axis, ctx.scaling, ctx.written = axis, scaling, written
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        kept, weight, delta, indices = ctx.saved_tensors
        grad_TM = grad.flatten(0, -2)
        chosen_TS = grad_TM.index_select(-1, indices) if ctx.axis == "output" else None
        grad_x = grad_delta = None
        if ctx.needs_input_grad[3]:
            kept_T = kept.flatten(0, -2)
            grad_delta = kept_T.t() @ grad_TM if chosen_TS is None else chosen_TS.t() @ kept_T
            grad_delta = grad_delta.to(delta.dtype)
            if ctx.scaling != 1.0:
                grad_delta *= ctx.scaling
        if ctx.needs_input_grad[0]:
            grad_x = grad @ weight
            if not ctx.written:
                scaled = (delta if ctx.scaling == 1.0 else delta * ctx.scaling).to(grad.dtype)
                if chosen_TS is None:
                    grad_x.index_add_(-1, indices, F.linear(grad, scaled))
                else:
                    grad_x.view(-1, grad_x.shape[-1]).addmm_(chosen_TS, scaled)
        return grad_x, None, None, grad_delta, None, None, None, None


def mixed_delta(x: Tensor, deltas: Tensor, indices: Tensor) -> Tensor:
    """Return what changes of input channels add when each row of the batch has a change of its own.

    Args:
        x: (B, ..., N).
        deltas: (B, S, M), the change of each row.
        indices: (B, S) int64, its channels; -1 fills up changes of fewer channels.
    Returns:
        (B, ..., M), dtype of `x`.
    Cost: one gather and one batched product where a low-rank adapter has two products that wait for each other.
    Example:
        >>> x = torch.eye(2).view(2, 1, 2)
        >>> mixed_delta(x, torch.tensor([[[5.0]], [[7.0]]]), torch.tensor([[0], [1]])).flatten()
        tensor([5., 7.])
    """
    rows_BTN = x.flatten(1, -2) if x.dim() > 2 else x.unsqueeze(1)
    indices_B1S = indices.unsqueeze(1)
    selected_BTS = rows_BTN.gather(-1, indices_B1S.clamp(min=0).expand(-1, rows_BTN.shape[1], -1))
    # Where nothing is selected, zero times an infinite input would be NaN.
    selected_BTS.masked_fill_(indices_B1S < 0, 0)
    return torch.bmm(selected_BTS, deltas.to(x.dtype)).view(*x.shape[:-1], deltas.shape[-1])
