"""Linear layers and embeddings with int8 weights.

A layer dequantises its weight inside the forward and again inside the backward pass, in the dtype of the activations;
no float copy outlives the operator that needs it, and neither codes nor weight are among the saved tensors. The
weight's gradient goes to the handle, in the handle's dtype.
Shapes: T tokens, M out_features, N in_features, V vocabulary, D hidden.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from featherweight.errors import ConfigError
from featherweight.nn.inner_backward import refuse_double_backward, refuse_transforms, without_autocast
from featherweight.nn.int8_module import Int8Module
from featherweight.quant.int8_weight import GROUP_SIZE, Int8Weight


class Int8Linear(Int8Module, nn.Linear):
    """``y = x W^T + b`` with an int8 W; otherwise an `nn.Linear`, for PEFT too.

    Args:
        in_features: N.
        out_features: M.
        bias: whether there is one; it stays a float parameter.
        group_size: elements of a row that share a scale.
        device: where to make it.
        dtype: of the bias, and of the weight's gradient.
    Example:
        >>> layer = Int8Linear(300, 2)
        >>> layer(torch.zeros(5, 300)).shape, layer.weight_codes.dtype, sorted(layer.state_dict())
        (torch.Size([5, 2]), torch.int8, ['bias', 'weight_codes', 'weight_scale'])
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        group_size: int = GROUP_SIZE,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias, device=device, dtype=dtype)
        self.adopt_weight_(group_size)

    def forward(self, input: Tensor) -> Tensor:
        """Return (..., M) for (..., N)."""
        return _product(self, input, is_transposed=False)

    def extra_repr(self) -> str:
        """Name the sizes."""
        return f"{super().extra_repr()}, group_size={self.group_size}"


class Int8Conv1D(Int8Module):
    """GPT-2's linear layer, ``y = x W + b`` with W (nx, nf), with an int8 W; groups lie along the nf outputs.

    Made from transformers' `Conv1D` by `fw.Int8`.
    """

    nf: int
    nx: int
    bias: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """Return (..., nf) for (..., nx)."""
        return _product(self, x, is_transposed=True)

    def extra_repr(self) -> str:
        """Name the sizes."""
        return f"nf={self.nf}, nx={self.nx}, group_size={self.group_size}"


class Int8Embedding(Int8Module, nn.Embedding):
    """An `nn.Embedding` with int8 rows, of which only those that are looked up are dequantised.

    Args:
        num_embeddings: V.
        embedding_dim: D.
        padding_idx: as in `nn.Embedding`.
        group_size: elements of a row that share a scale.
        device: where to make it.
        dtype: of the result and of the weight's gradient.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        group_size: int = GROUP_SIZE,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_embeddings, embedding_dim, padding_idx, device=device, dtype=dtype)
        self.adopt_weight_(group_size)

    def forward(self, input: Tensor) -> Tensor:
        """Return (..., D) for indices (...)."""
        self.require_handle()
        refuse_transforms("Int8Embedding")
        padding = -1 if self.padding_idx is None else self.padding_idx
        result: Tensor = _Lookup.apply(input, self.weight, self.int8_weight(), padding, self.scale_grad_by_freq)
        return result

    def extra_repr(self) -> str:
        """Name the sizes."""
        return f"{super().extra_repr()}, group_size={self.group_size}"


def _product(module: Any, x: Tensor, *, is_transposed: bool) -> Tensor:
    module.require_handle()
    refuse_transforms("Int8Linear")
    dtype = _activation_dtype(x)
    bias: Tensor | None = module.bias
    inputs = (x.to(dtype), module.weight, None if bias is None else bias.to(dtype))
    result: Tensor = _Product.apply(*inputs, module.int8_weight(), is_transposed)
    return result


def _activation_dtype(x: Tensor) -> torch.dtype:
    device_type = x.device.type
    is_cast = torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type)
    return torch.get_autocast_dtype(device_type) if is_cast and x.dtype != torch.float64 else x.dtype


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, handle: Tensor, bias: Tensor | None, weight: Int8Weight, is_transposed: bool
    ) -> Tensor:
        # Not among the saved tensors, which checkpoints and offloading keep or move; so we look for changes ourselves.
        ctx.handle_dtype, ctx.weight, ctx.version = handle.dtype, weight, weight.version
        ctx.is_transposed = is_transposed
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None)
        with without_autocast(x.device.type):
            matrix = weight.dequantize(x.dtype)
            output = F.linear(x, matrix.t() if is_transposed else matrix, bias)
        # With a bias and more dimensions it is a view, and autograd would refuse to let the next layer write into it.
        return torch.ops.aten._unsafe_view(output, output.shape) if output._is_view() else output

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        refuse_double_backward("Int8Linear")
        (grad,) = upstream
        (x,) = ctx.saved_tensors
        grad_TM = grad.reshape(-1, grad.shape[-1])
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        grad_x = grad_weight = None
        with without_autocast(grad.device.type):
            if wants_x:
                ctx.weight.require_version(ctx.version)
                matrix = ctx.weight.dequantize(grad.dtype)
                matrix_MN = matrix.t() if ctx.is_transposed else matrix
                grad_x = (grad_TM @ matrix_MN).view(*grad.shape[:-1], matrix_MN.shape[1])
                del matrix, matrix_MN
            if wants_weight:
                x_TN = x.reshape(-1, x.shape[-1])
                grad_weight = x_TN.t() @ grad_TM if ctx.is_transposed else grad_TM.t() @ x_TN
                grad_weight = grad_weight.to(ctx.handle_dtype)
            return grad_x, grad_weight, grad_TM.sum(0) if wants_bias else None, None, None


class _Lookup(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, index: Tensor, handle: Tensor, weight: Int8Weight, padding_idx: int, scale_grad_by_freq: bool
    ) -> Tensor:
        ctx.options = len(weight.codes), padding_idx, scale_grad_by_freq
        ctx.save_for_backward(index)
        return weight.gather(index, handle.dtype)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        refuse_double_backward("Int8Embedding")
        (index,) = ctx.saved_tensors
        grad_weight = torch.ops.aten.embedding_dense_backward(upstream[0], index, *ctx.options)
        return None, grad_weight, None, None, None


def _float_class(module: Int8Module) -> type[nn.Module]:
    if isinstance(module, Int8Linear):
        return nn.Linear
    if isinstance(module, Int8Embedding):
        return nn.Embedding
    from transformers.pytorch_utils import Conv1D

    kind: type[nn.Module] = Conv1D
    return kind


def int8_class(module: nn.Module) -> type[Int8Module] | None:
    """Return the class that a module gets when its weight becomes int8, or None if there is none."""
    if type(module) is nn.Linear:
        return Int8Linear
    if type(module) is nn.Embedding:
        return Int8Embedding
    kind = type(module)
    is_conv1d = (kind.__module__, kind.__name__) == ("transformers.pytorch_utils", "Conv1D")
    return Int8Conv1D if is_conv1d else None


def to_int8_(module: nn.Module, group_size: int = GROUP_SIZE, owner: Int8Module | None = None) -> Int8Module:
    """Make the weight of a module int8, in place: the module and its parameter stay the same objects.

    Args:
        module: an `nn.Linear`, `nn.Embedding` or transformers' `Conv1D`, none of their subclasses.
        group_size: elements of a row that share a scale.
        owner: the int8 module whose weight it shares; None if it has its own.
    Raises:
        ConfigError: for another class.
    """
    kind = int8_class(module)
    if kind is None:
        raise ConfigError(
            f"to_int8_: module={type(module).__name__} has no int8 form; expected nn.Linear, nn.Embedding or Conv1D. "
            "Leave it out."
        )
    previous = module.__class__
    module.__class__ = kind
    try:
        converted: Any = module
        converted.adopt_weight_(group_size, owner)
    except BaseException:
        module.__class__ = previous
        raise
    return converted


def to_float_(module: Int8Module) -> nn.Module:
    """Undo `to_int8_`: the weight becomes a float parameter with the dequantised values, in place."""
    kind = _float_class(module)
    module.release_weight_()
    module.__class__ = kind  # type: ignore[assignment]
    return module
