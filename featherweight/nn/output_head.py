"""The output head of a language model, run chunk by chunk: logits, and gradients of what is below and in it.

Two ways to do the same: `MatrixHead` multiplies with a weight matrix and writes the products of the backward pass out;
`ModuleHead` calls a layer and lets autograd differentiate each chunk: LoRA adapters, quantised weights and the like.
Shapes: C tokens of a chunk, D hidden, V vocabulary.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from featherweight.nn.inner_backward import (
    ForwardState,
    graph_of_its_own,
    replaced_parameters,
    require_declared_leaves,
    stand_ins,
    trainable_parameters,
    without_autocast,
)
from featherweight.nn.weight_gradient import GradientSum


class Head(ABC):
    """How logits come from hidden states; `start` begins one pass over all chunks.

    Attributes:
        parameters: what may receive a gradient.
        vocab_size: V.
        dtype: of the products; hidden states are cast to it.
    """

    parameters: tuple[Tensor, ...]
    vocab_size: int
    dtype: torch.dtype

    @abstractmethod
    def start(
        self,
        parameters: Sequence[Tensor],
        wanted: Sequence[bool],
        *,
        wants_hidden: bool,
        accum_dtype: torch.dtype | None,
        chunks: int,
    ) -> "HeadPass":
        """Begin a pass with these values of the parameters; `wanted` says which of them need a gradient."""

    @abstractmethod
    def context(self) -> AbstractContextManager[object]:
        """Return the context for a pass: its autocast settings."""


class HeadPass(ABC):
    """One pass over all chunks: for each one `logits`, then `backward` if gradients are wanted."""

    def __init__(self, sums: list[GradientSum | None], wants_hidden: bool) -> None:
        self.sums = sums
        self.wants_hidden = wants_hidden

    @abstractmethod
    def logits(self, hidden_CD: Tensor) -> Tensor:
        """Return (C, V) logits that the caller may overwrite."""

    @abstractmethod
    def backward(self, gradient_CV: Tensor, hidden_CD: Tensor) -> Tensor | None:
        """Add to the sums of the parameters and return the (C, D) gradient of the hidden states if it is wanted."""


class MatrixHead(Head):
    """Logits are ``hidden @ weight.T + bias``.

    Args:
        weight: (V, D).
        bias: (V,) or None.
        dtype: of the products.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> None:
        self.parameters = (weight,) if bias is None else (weight, bias)
        self.vocab_size = weight.shape[0]
        self.dtype = dtype
        self._device_type = weight.device.type

    def context(self) -> AbstractContextManager[object]:
        """Return a context without autocast: a pass casts the weight once, not once per chunk."""
        return without_autocast(self._device_type)

    def start(
        self,
        parameters: Sequence[Tensor],
        wanted: Sequence[bool],
        *,
        wants_hidden: bool,
        accum_dtype: torch.dtype | None,
        chunks: int,
    ) -> "HeadPass":
        """Begin a pass; see `Head.start`."""
        sums = [
            GradientSum(p, accum_dtype, chunks) if want else None for p, want in zip(parameters, wanted, strict=True)
        ]
        return _MatrixPass([parameter.to(self.dtype) for parameter in parameters], sums, wants_hidden)


class _MatrixPass(HeadPass):
    def __init__(self, parameters: list[Tensor], sums: list[GradientSum | None], wants_hidden: bool) -> None:
        super().__init__(sums, wants_hidden)
        self._weight_VD = parameters[0]
        self._bias_V = parameters[1] if len(parameters) > 1 else None

    def logits(self, hidden_CD: Tensor) -> Tensor:
        return F.linear(hidden_CD, self._weight_VD, self._bias_V)

    def backward(self, gradient_CV: Tensor, hidden_CD: Tensor) -> Tensor | None:
        weight_sum, bias_sum = self.sums[0], self.sums[1] if len(self.sums) > 1 else None
        if bias_sum is not None:
            bias_sum.add_(gradient_CV.sum(0))
        if weight_sum is None and not self.wants_hidden:
            return None
        rounded_CV = gradient_CV.to(hidden_CD.dtype)
        del gradient_CV
        if weight_sum is not None:
            weight_sum.add_product_(rounded_CV, hidden_CD)
        return rounded_CV @ self._weight_VD if self.wants_hidden else None


class ModuleHead(Head):
    """Logits are what a layer returns; its trainable parameters receive gradients.

    Args:
        module: maps (C, D) to (C, V), each row for itself.
        vocab_size: V.
        dtype: in which the layer expects hidden states.
    """

    def __init__(self, module: nn.Module, vocab_size: int, dtype: torch.dtype, device_type: str) -> None:
        self.module = module
        self.parameters = trainable_parameters(module)
        self.vocab_size = vocab_size
        self.dtype = dtype
        self._state = ForwardState(device_type, keep_rng=False)

    def context(self) -> AbstractContextManager[object]:
        """Return a context with the autocast settings in which the head was made."""
        return self._state.restored()

    def start(
        self,
        parameters: Sequence[Tensor],
        wanted: Sequence[bool],
        *,
        wants_hidden: bool,
        accum_dtype: torch.dtype | None,
        chunks: int,
    ) -> "HeadPass":
        """Begin a pass; see `Head.start`."""
        sums = [
            GradientSum(p, accum_dtype, chunks) if want else None for p, want in zip(parameters, wanted, strict=True)
        ]
        return _ModulePass(self, stand_ins(tuple(parameters)), sums, wants_hidden)


class _ModulePass(HeadPass):
    def __init__(
        self, head: ModuleHead, stand_ins: tuple[Tensor, ...], sums: list[GradientSum | None], wants_hidden: bool
    ) -> None:
        super().__init__(sums, wants_hidden)
        self._head = head
        self._stand_ins = stand_ins
        self._wanted = [index for index, one in enumerate(sums) if one is not None]
        self._graph: tuple[Tensor, Tensor] | None = None

    def logits(self, hidden_CD: Tensor) -> Tensor:
        needs_graph = self.wants_hidden or bool(self._wanted)
        input_CD = hidden_CD.detach().requires_grad_(self.wants_hidden)
        with (
            torch.set_grad_enabled(needs_graph),
            graph_of_its_own(),
            replaced_parameters(self._head.module, self._head.parameters, self._stand_ins),
        ):
            output_CV = self._head.module(input_CD)
        self._graph = (input_CD, output_CV) if needs_graph else None
        # The layer may have kept its output for the backward pass, so the caller gets a copy to overwrite.
        return output_CV.detach().clone() if output_CV.dtype.itemsize >= 4 else output_CV.detach()

    def backward(self, gradient_CV: Tensor, hidden_CD: Tensor) -> Tensor | None:
        if self._graph is None:
            return None
        input_CD, output_CV = self._graph
        self._graph = None
        inputs = [self._stand_ins[index] for index in self._wanted]
        require_declared_leaves("linear_cross_entropy", (output_CV,), (*self._stand_ins, input_CD))
        gradients = torch.autograd.grad(
            output_CV,
            [*inputs, *([input_CD] if self.wants_hidden else [])],
            gradient_CV.to(output_CV.dtype),
            allow_unused=True,
        )
        for index, gradient in zip(self._wanted, gradients, strict=False):
            total = self.sums[index]
            if total is not None and gradient is not None:
                total.add_(gradient)
        return gradients[-1] if self.wants_hidden else None
