"""A linear layer whose backward pass leaves the core of its weight's gradient instead of the gradient.

Output and gradient of the input are those of the ordinary layer. What the weight's gradient is needed for, its product
with a basis, is computed from its factors, and goes to a `CoreReceiver`. For autograd the weight gets an empty sparse
gradient: hooks of the weight run as ever, at the moment when all parts of a backward pass are in, and no tensor of the
weight's size is made. A pass that does not reach the weight (`torch.autograd.grad` with respect to an input) hands out
nothing.
Shapes: T tokens, M out_features, N in_features, K columns of what is kept of the input.
"""

from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from featherweight.errors import ConfigError
from featherweight.nn.inner_backward import refuse_double_backward, refuse_transforms
from featherweight.quant.int8_weight import Int8Weight


class CoreReceiver(Protocol):
    """Takes the factors of a weight's gradient."""

    def product(self, x: Tensor, cast_x: Tensor) -> Tensor | None:
        """Return the (..., K) product with the input that is to be kept instead of it; None to keep the input itself.

        Args:
            x: (..., N) as the layer got it; the product may be one that another layer with the same input has made.
            cast_x: x in the dtype of the computation.
        """
        ...

    def version(self) -> int:
        """Return a number that changes when `product` would take another basis."""
        ...

    def add(self, left_TM: Tensor, right_TN: Tensor) -> None:
        """Take in the gradient ``left^T right``."""
        ...

    def add_thin(self, left_TM: Tensor, thin_TK: Tensor, version: int) -> None:
        """Take in the gradient ``left^T x``, of which ``thin = product(x)`` was kept."""
        ...


def projected_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    receiver: CoreReceiver,
    *,
    source: Int8Weight | None = None,
    is_transposed: bool = False,
) -> Tensor:
    """Return ``x W^T + b``; the backward pass hands the factors of W's gradient to `receiver`.

    Args:
        x: (..., N).
        weight: (M, N), requires a gradient; receives an empty sparse one.
        bias: (M,) or None; receives an ordinary gradient.
        receiver: where the factors go.
        source: codes of an int8 weight, whose handle `weight` is; they are dequantised in the forward and once more in
            the backward pass.
        is_transposed: the weight is (N, M), as in GPT-2's Conv1D, and its gradient ``x^T g``.
    Returns:
        (..., M).
    Raises:
        NumericsError: in the backward pass, if an int8 weight was changed since the forward pass.
        ConfigError: if ``torch.autograd.grad`` asks for the gradient of the weight itself, for the gradient of a
            gradient (a gradient penalty), and inside the transforms of `torch.func`.
    Cost: forward 2*T*M*N FLOPs and 2*T*N*K for what is kept; backward 2*T*M*N for the input's gradient and what the
        receiver computes. Keeps x, or (T, K) of it.
    """
    refuse_transforms("core gradients")
    kind = x.device.type
    is_cast = torch.is_autocast_enabled(kind) and x.dtype != torch.float64  # autocast leaves float64 alone
    dtype = torch.get_autocast_dtype(kind) if is_cast else x.dtype
    result: Tensor = _ProjectedLinear.apply(x, weight, bias, receiver, source, is_transposed, dtype)
    return result


class _ProjectedLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        receiver: CoreReceiver,
        source: Int8Weight | None,
        is_transposed: bool,
        dtype: torch.dtype,
    ) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            cast_x = x.to(dtype)
            matrix = _values(weight, source, dtype, is_transposed)
            output = F.linear(cast_x, matrix, None if bias is None else bias.to(dtype))
            if output._is_view():  # (of a flattened product) autograd lets nobody change such a one in place
                output = torch.ops.aten._unsafe_view(output, output.shape)
            product = None if is_transposed else receiver.product(x, cast_x)
        ctx.receiver, ctx.source, ctx.is_transposed, ctx.dtype = receiver, source, is_transposed, dtype
        ctx.input_dtype = x.dtype
        ctx.version = None if product is None else receiver.version()
        ctx.codes_version = None if source is None else source.version
        ctx.is_parameter = isinstance(weight, nn.Parameter)
        ctx.shape, ctx.weight_dtype = weight.shape, weight.dtype
        ctx.bias_dtype = None if bias is None else bias.dtype
        # The handle of an int8 weight has no values; whoever stores saved tensors elsewhere would make a matrix of it.
        ctx.save_for_backward(cast_x if product is None else product, weight if source is None else None)
        return output

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        refuse_double_backward("core gradients")
        kept, weight = ctx.saved_tensors
        if ctx.source is not None:
            ctx.source.require_version(ctx.codes_version)
        with torch.autocast(grad_output.device.type, enabled=False):
            grad_output = grad_output.to(ctx.dtype)
            grad_input = grad_bias = None
            if ctx.needs_input_grad[0]:
                grad_input = grad_output @ _values(weight, ctx.source, ctx.dtype, ctx.is_transposed)
                grad_input = grad_input.to(ctx.input_dtype)
            grad_TM = grad_output.reshape(-1, grad_output.shape[-1])
            if ctx.needs_input_grad[2]:
                grad_bias = grad_TM.sum(0).to(ctx.bias_dtype)
            if not _reaches_weight(ctx):
                return grad_input, None, grad_bias, None, None, None, None
            kept_TK = kept.reshape(-1, kept.shape[-1])
            if ctx.version is not None:
                ctx.receiver.add_thin(grad_TM, kept_TK, ctx.version)
            elif ctx.is_transposed:
                ctx.receiver.add(kept_TK, grad_TM)
            else:
                ctx.receiver.add(grad_TM, kept_TK)
        empty = empty_gradient(ctx.shape, ctx.weight_dtype, grad_output.device)
        return grad_input, empty, grad_bias, None, None, None, None


def _reaches_weight(ctx: Any) -> bool:
    """Say whether the running backward pass goes on to the weight; `needs_input_grad` says what the forward pass knew.

    Raises:
        ConfigError: if `torch.autograd.grad` wants its gradient, which nothing computes. (Of the stand-in for a
            parameter inside a chunk it is wanted in this way, and comes as cores.)
    """
    try:
        return bool(torch._C._will_engine_execute_node(ctx.next_functions[1][0]))
    except RuntimeError:  # torch's answer for a leaf whose gradient torch.autograd.grad returns
        if not ctx.is_parameter:
            return True
    raise ConfigError(
        f"projected_linear: torch.autograd.grad asks for the gradient of the weight {tuple(ctx.shape)}, of which only "
        "the core is computed while a layer-wise optimizer runs; expected loss.backward(). Call handle.remove() or "
        "fw.remove(model, fw.CoreGradient()) before the forward pass."
    )


def empty_gradient(shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return a gradient of a weight's shape without elements; autograd takes it, and it costs no memory."""
    indices = torch.empty((len(shape), 0), dtype=torch.int64, device=device)
    values = torch.empty(0, dtype=dtype, device=device)
    return torch.sparse_coo_tensor(indices, values, shape, check_invariants=False)


def _values(weight: Tensor, source: Int8Weight | None, dtype: torch.dtype, is_transposed: bool) -> Tensor:
    matrix = weight.to(dtype) if source is None else source.dequantize(dtype)
    return matrix.t() if is_transposed else matrix
