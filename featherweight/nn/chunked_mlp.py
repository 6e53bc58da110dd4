"""A feed-forward layer on one chunk of tokens after the other, with its backward pass written out.

Compared with `featherweight.nn.chunked`, the repetition in the backward pass stops before the last product, and
products are added straight into the sums. Only the element-wise middle is left to autograd, so any activation works and
its derivative rounds as in the plain layer.
Shapes: T tokens, C tokens of a chunk, D hidden, F feed-forward.
Source: arXiv 2407.15892, section 3.1. Differs from the official code: without activation checkpointing, too, only the
input is kept.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge
from torch.nn import functional as F

from featherweight.errors import LISTED, ConfigError, ShapeError, did_you_mean
from featherweight.nn.chunk_size import ChunkSize, check_chunk_size, mlp_chunk_size
from featherweight.nn.inner_backward import (
    ForwardState,
    graph_is_retained,
    graph_of_its_own,
    refuse_double_backward,
    require_declared_leaves,
    without_autocast,
)
from featherweight.nn.saved_early import SavedEarly
from featherweight.nn.weight_gradient import GradientSum
from featherweight.tiles import tiles

Linear = tuple[Tensor, Tensor | None]
"""Weight (out_features, in_features) and bias (out_features,) of a linear layer."""

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "relu2": lambda x: F.relu(x).square(),
}
"""Activations with a name; any other element-wise function may be given itself."""


def chunked_mlp(
    x: Tensor,
    gate_weight: Tensor,
    up_weight: Tensor,
    down_weight: Tensor,
    *,
    gate_bias: Tensor | None = None,
    up_bias: Tensor | None = None,
    down_bias: Tensor | None = None,
    act: str | Callable[[Tensor], Tensor] = "silu",
    chunk_size: ChunkSize = "auto",
    accum_dtype: torch.dtype | None = None,
    save: Literal["input", "products"] = "input",
) -> Tensor:
    """Return ``(act(x @ gate.T) * (x @ up.T)) @ down.T`` without holding its inside for all tokens.

    Args:
        x: (..., D) float, any strides.
        gate_weight: (F, D), of x's dtype unless autocast is on.
        up_weight: (F, D).
        down_weight: (D, F).
        gate_bias: (F,) or None.
        up_bias: (F,) or None.
        down_bias: (D,) or None.
        act: silu, gelu, gelu_tanh, relu, relu2, or an element-wise function.
        chunk_size: tokens at once; "auto" chooses, and computes short inputs plainly.
        accum_dtype: in which weight gradients are summed over chunks; None takes float32 for 16-bit weights.
        save: what is kept for the backward pass: "input", x alone; "products", also ``x @ gate.T`` and ``x @ up.T``,
            which are then not computed a second time.
    Returns:
        (..., D).
    Raises:
        ShapeError: if shapes do not fit.
        ConfigError: if dtypes differ, an option is not allowed, or a second derivative is asked for.
    Cost: 18*T*D*F FLOPs for training, 4*T*D*F more with save="input". In the backward pass 6*C*F numbers besides the
        gradients, whatever T is.
    Source: arXiv 2407.15892, section 3.1.
    Example:
        >>> x, gate, up = torch.randn(1000, 8), torch.randn(32, 8, requires_grad=True), torch.randn(32, 8)
        >>> y = chunked_mlp(x, gate, up, torch.randn(8, 32), chunk_size=128)
        >>> y.sum().backward()
        >>> y.shape, gate.grad.shape
        (torch.Size([1000, 8]), torch.Size([32, 8]))
    """
    activation = _activation(act)
    if save not in ("input", "products"):
        raise ConfigError(f"chunked_mlp: save={save!r} is not allowed; expected input or products. Use 'input'.")
    return feed_forward(
        x,
        [(gate_weight, gate_bias), (up_weight, up_bias)],
        lambda gate, up: activation(gate) * up,
        (down_weight, down_bias),
        chunk_size=chunk_size,
        accum_dtype=accum_dtype,
        keeps_products=save == "products",
    )


def feed_forward(
    x: Tensor,
    first: Sequence[Linear],
    combine: Callable[..., Tensor],
    last: Linear,
    *,
    chunk_size: ChunkSize = "auto",
    accum_dtype: torch.dtype | None = None,
    keeps_products: bool = False,
) -> Tensor:
    """Return ``last(combine(*(one(x) for one in first)))``, chunk by chunk.

    Args:
        x: (..., D).
        first: linear layers that read x: gate and up, or a single one.
        combine: element-wise over tokens and without trainable tensors: from the products of `first` to (C, F).
        last: linear layer that reads the result.
        chunk_size: see `chunked_mlp`, as for the other arguments.
        accum_dtype: see there.
        keeps_products: keep the products of `first` for the backward pass.
    Raises:
        ShapeError: if shapes do not fit.
        ConfigError: if dtypes differ.
    """
    check_chunk_size("chunked_mlp", chunk_size)
    dtype = _check_operands(x, [*first, last])
    x_TD = x.reshape(-1, x.shape[-1])
    if chunk_size == "auto":
        chunk_size = mlp_chunk_size(len(x_TD), last[0].shape[1], x.device)
    if chunk_size >= len(x_TD):
        return F.linear(combine(*(F.linear(x, *one) for one in first)), *last)
    with_grad = torch.is_grad_enabled()  # inside an autograd function it is always off
    work = _Work(combine, len(first), dtype, chunk_size, accum_dtype, keeps_products and with_grad, with_grad)
    operands = [tensor for linear in (*first, last) for tensor in linear]
    return _FeedForward.apply(work, x_TD, *operands).view(*x.shape[:-1], last[0].shape[0])


@dataclass(frozen=True)
class _Work:
    combine: Callable[..., Tensor]
    first: int
    dtype: torch.dtype
    chunk_size: int
    accum_dtype: torch.dtype | None
    keeps_products: bool
    with_grad: bool

    def bounds(self, tokens: int) -> Iterable[tuple[int, int]]:
        """Return start and end of each chunk; all of them even in a simulation where chunks leave something behind."""
        if self.keeps_products:
            return [(at, min(at + self.chunk_size, tokens)) for at in range(0, tokens, self.chunk_size)]
        return tiles(tokens, self.chunk_size)

    def cast(self, operands: Sequence[Tensor | None]) -> list[Linear]:
        """Return the linear layers in the dtype of the products, cast once for all chunks."""
        cast = [None if operand is None else operand.to(self.dtype) for operand in operands]
        return [(weight, bias) for weight, bias in zip(cast[::2], cast[1::2], strict=True) if weight is not None]


class _FeedForward(torch.autograd.Function):
    """All chunks as one node of the graph."""

    @staticmethod
    def forward(ctx: Any, work: _Work, x_TD: Tensor, *operands: Tensor | None) -> Tensor:
        state = ForwardState(x_TD.device.type, keep_rng=False)
        ctx.work, ctx.state = work, state
        ctx.kept = SavedEarly(x_TD, *operands) if work.with_grad else None
        *first, last = work.cast(operands)
        result_TD = x_TD.new_empty((len(x_TD), last[0].shape[0]), dtype=work.dtype)
        products_TF: list[Tensor] = []
        with without_autocast(x_TD.device.type):
            for start, stop in work.bounds(len(x_TD)):
                products = [F.linear(x_TD[start:stop].to(work.dtype), *one) for one in first]
                if work.keeps_products:
                    products_TF += products
                with state.restored():
                    middle_CF = work.combine(*products)
                del products
                result_TD[start:stop].copy_(F.linear(middle_CF, *last))
        ctx.save_for_backward(*products_TF)
        return result_TD

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        refuse_double_backward("chunked_mlp")
        work: _Work = ctx.work
        x_TD, *operands = ctx.kept.tensors(release=not graph_is_retained())
        kept = ctx.saved_tensors
        chunks = -(-len(x_TD) // work.chunk_size)
        sums = [
            GradientSum(operand, work.accum_dtype, chunks) if need else None
            for operand, need in zip(operands, ctx.needs_input_grad[2:], strict=True)
        ]
        x_gradient_TD = torch.empty_like(x_TD) if ctx.needs_input_grad[1] else None
        linears = work.cast(operands)
        with without_autocast(x_TD.device.type):
            for start, stop in work.bounds(len(x_TD)):
                rows, index = slice(start, stop), start // work.chunk_size
                products = kept[index * work.first : (index + 1) * work.first]
                x_gradient_CD = _backward_chunk(
                    work, ctx.state, x_TD[rows], upstream[0][rows], linears, products, sums, x_gradient_TD is not None
                )
                if x_gradient_TD is not None and x_gradient_CD is not None:
                    x_gradient_TD[rows] = x_gradient_CD.to(x_TD.dtype)
        return (None, x_gradient_TD, *(None if s is None else s.finish() for s in sums))


def _backward_chunk(
    work: _Work,
    state: ForwardState,
    x_CD: Tensor,
    upstream_CD: Tensor,
    linears: list[Linear],
    products: Sequence[Tensor],
    sums: list[GradientSum | None],
    wants_x: bool,
) -> Tensor | None:
    """Add the weight gradients of one chunk and return the gradient of its input.

    With ``h = combine(a, b)`` and dO the upstream gradient: ``dW_down += dO.T @ h``, ``dh = dO @ W_down``, da and db by
    autograd, ``dW_i += da_i.T @ x``, ``dx = sum of da_i @ W_i``.
    """
    *first, last = linears
    x_CD = x_CD.to(work.dtype)
    upstream_CD = upstream_CD.to(work.dtype)
    wants_first = wants_x or any(total is not None for total in sums[:-2])
    leaves = [product.detach() for product in products] or [F.linear(x_CD, *one) for one in first]
    with torch.set_grad_enabled(wants_first), graph_of_its_own(), state.restored():
        leaves = [leaf.requires_grad_(wants_first) for leaf in leaves]
        middle_CF = work.combine(*leaves)
    require_declared_leaves("chunked_mlp", (middle_CF,), tuple(leaves))
    _add_linear_(sums[-2:], upstream_CD, middle_CF.detach())
    if not wants_first:
        return None
    edge, dtype = get_gradient_edge(middle_CF), middle_CF.dtype
    del middle_CF  # its values have done their work; the edge stands for its place in the graph
    gradients = torch.autograd.grad(edge, leaves, (upstream_CD @ last[0]).to(dtype))
    del leaves
    x_gradient_CD: Tensor | None = None
    for index, (gradient_CF, one) in enumerate(zip(gradients, first, strict=True)):
        _add_linear_(sums[2 * index : 2 * index + 2], gradient_CF, x_CD)
        if wants_x:
            # Product and sum apart, as autograd does it: one fused call would round differently in 16 bits.
            term_CD = gradient_CF @ one[0]
            x_gradient_CD = term_CD if x_gradient_CD is None else x_gradient_CD.add_(term_CD)
    return x_gradient_CD


def _add_linear_(sums: Sequence[GradientSum | None], gradient_CM: Tensor, input_CN: Tensor) -> None:
    weight_sum, bias_sum = sums
    if weight_sum is not None:
        weight_sum.add_product_(gradient_CM, input_CN)
    if bias_sum is not None:
        bias_sum.add_(gradient_CM.sum(0, dtype=bias_sum.dtype))


def _activation(act: str | Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    if callable(act):
        return act
    if act not in ACTIVATIONS:
        raise ConfigError(
            f"chunked_mlp: act={act!r} is unknown; expected {', '.join(ACTIVATIONS)} or a function. "
            f"{did_you_mean(str(act), ACTIVATIONS, otherwise=LISTED)}"
        )
    return ACTIVATIONS[act]


def _check_operands(x: Tensor, linears: Sequence[Linear]) -> torch.dtype:
    """Check that shapes and dtypes fit and return the dtype of the products."""
    *first, (last_weight, last_bias) = linears
    for weight, bias in linears:
        if weight.ndim != 2 or (bias is not None and bias.shape != weight.shape[:1]):
            shapes = [tuple(operand.shape) for operand in (weight, bias) if operand is not None]
            raise ShapeError(
                f"chunked_mlp: shapes={shapes} of a weight and its bias do not fit; expected (out, in) and (out,). "
                "Transpose the weight if it is (in, out)."
            )
    for weight, _ in first:
        if weight.shape[1] != x.shape[-1]:
            raise ShapeError(
                f"chunked_mlp: weight of shape {tuple(weight.shape)} does not fit x {tuple(x.shape)}; expected "
                f"(F, {x.shape[-1]}). Give gate and up as (F, D), down as (D, F)."
            )
    device_type = x.device.type
    if torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type):
        return torch.get_autocast_dtype(device_type)
    dtypes = {operand.dtype for operand in (x, *(t for linear in linears for t in linear)) if operand is not None}
    if len(dtypes) > 1:
        raise ConfigError(
            f"chunked_mlp: dtypes={sorted(map(str, dtypes))} of x and the weights differ; expected one dtype, or "
            "autocast. Cast x to the weights' dtype."
        )
    return x.dtype
