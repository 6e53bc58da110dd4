"""Any computation that treats each token for itself, run on one chunk of tokens after the other.

The backward pass repeats a chunk's forward pass and differentiates it at once, so that what lies between input and
output exists for one chunk at a time. Only the input is kept.
Source: arXiv 2407.15892, section 3.1. Differs from the paper and its peers: the gradient of each parameter is summed up
first and returned to autograd once. So hooks on parameters run once per backward pass, whatever the number of chunks.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from featherweight.errors import ConfigError, ShapeError
from featherweight.nn.chunk_size import ChunkSize, check_chunk_size, mlp_chunk_size
from featherweight.nn.inner_backward import (
    ForwardState,
    graph_is_retained,
    graph_of_its_own,
    refuse_double_backward,
    replaced_parameters,
    require_declared_leaves,
    stand_ins,
    trainable_parameters,
)
from featherweight.nn.saved_early import SavedEarly
from featherweight.nn.weight_gradient import GradientSum
from featherweight.tiles import tiles

# What a chunk of an unknown computation is taken to hold: as many features as a common feed-forward layer.
_ASSUMED_EXPANSION = 4


def chunk(
    fn: Callable[..., Any],
    x: Tensor | tuple[Tensor, ...],
    *,
    params: tuple[Tensor, ...] = (),
    dim: int = -2,
    chunk_size: ChunkSize = "auto",
    accum_dtype: torch.dtype | None = None,
) -> Any:
    """Run a token-wise computation chunk by chunk; the backward pass repeats it chunk by chunk.

    Every output token may depend on its own input token alone: norms, projections, feed-forward layers, but not
    attention. Dropout draws the same numbers in the repetition.

    Args:
        fn: a module, a bound method of one, or a function that is called as ``fn(*x_chunks, *params)``. Returns a
            tensor or a tuple of tensors with the chunk's tokens along `dim`.
        x: (..., L, D) input, or several, all with L tokens along `dim`.
        params: every trainable tensor that a function uses. For a module and its methods they are found, and `params`
            stays empty.
        dim: the axis that is cut.
        chunk_size: positions along `dim` at once; "auto" chooses, and leaves short inputs whole.
        accum_dtype: in which gradients of `params` are summed; None takes float32 for 16-bit ones.
    Returns:
        What ``fn(x)`` returns.
    Raises:
        ShapeError: if inputs or outputs differ in length along `dim`.
        ConfigError: in the backward pass, if a function uses a trainable tensor that is not in `params`, or a second
            derivative is asked for.
    Cost: one more forward pass; keeps x, and 5 KB of random state.
    Source: arXiv 2407.15892, section 3.1.
    Example:
        >>> layer = nn.Sequential(nn.Linear(4, 64), nn.GELU(), nn.Linear(64, 4))
        >>> x = torch.randn(2, 100, 4, requires_grad=True)
        >>> y = chunk(layer, x, chunk_size=16)
        >>> torch.allclose(y, layer(x), atol=1e-6), y.requires_grad
        (True, True)
    """
    inputs = x if isinstance(x, tuple) else (x,)
    axis, length = _axis(inputs, dim)
    check_chunk_size("chunk", chunk_size)
    if chunk_size == "auto":
        first = inputs[0]
        rows = max(1, first.numel() // max(1, first.shape[-1] * length))
        chunk_size = -(-mlp_chunk_size(rows * length, _ASSUMED_EXPANSION * first.shape[-1], first.device) // rows)
    module = fn if isinstance(fn, nn.Module) else getattr(fn, "__self__", None)
    module = module if isinstance(module, nn.Module) else None
    if module is not None and params:
        raise ConfigError(
            f"chunk: params={len(params)} tensors are given beside {type(module).__name__}, whose own are found; "
            "expected params=(). Leave it out, or pass a plain function."
        )
    if chunk_size >= length:
        return fn(*inputs, *params)
    parameters = params if module is None else trainable_parameters(module)
    return _run_region(fn, module, parameters, inputs, axis, chunk_size, accum_dtype)


def chunk_of_module(
    module: nn.Module,
    fn: Callable[..., Any],
    inputs: tuple[Tensor, ...],
    parameters: tuple[Tensor, ...],
    *,
    dim: int,
    chunk_size: int,
    accum_dtype: torch.dtype | None = None,
) -> Any:
    """Run a part of a module's computation in chunks, as `chunk` does.

    Args:
        module: whose parameters `fn` reads, under their places in it.
        fn: called as ``fn(*chunks)``.
        inputs: tensors of one length along `dim`.
        parameters: the trainable ones among the module's that `fn` uses. Others may be listed too; they get no
            gradient from here, but autograd then waits with theirs until this part has been differentiated.
        dim: the axis that is cut.
        chunk_size: positions along `dim` at once.
        accum_dtype: see `chunk`.
    Raises:
        ShapeError: if lengths differ.
        ConfigError: in the backward pass, if `fn` uses a trainable tensor that is not listed.
    """
    axis, length = _axis(inputs, dim)
    if chunk_size >= length:
        return fn(*inputs)
    return _run_region(fn, module, parameters, inputs, axis, chunk_size, accum_dtype)


def _run_region(
    fn: Callable[..., Any],
    module: nn.Module | None,
    parameters: tuple[Tensor, ...],
    inputs: tuple[Tensor, ...],
    axis: int,
    chunk_size: int,
    accum_dtype: torch.dtype | None,
) -> Any:
    length, with_grad = inputs[0].shape[axis], torch.is_grad_enabled()  # inside an autograd function it is always off
    region = _Region(fn, module, parameters, len(inputs), axis, length, chunk_size, accum_dtype, with_grad)
    outputs = _Chunked.apply(region, *inputs, *parameters)
    return outputs if region.returns_tuple else outputs[0]


@dataclass
class _Region:
    """A computation and how it is cut."""

    fn: Callable[..., Any]
    module: nn.Module | None
    parameters: tuple[Tensor, ...]
    inputs: int
    axis: int
    length: int
    chunk_size: int
    accum_dtype: torch.dtype | None
    with_grad: bool
    returns_tuple: bool = False

    def bounds(self) -> Iterator[tuple[int, int]]:
        """Yield start and length of each chunk."""
        for start, stop in tiles(self.length, self.chunk_size):
            yield start, stop - start

    def run(self, inputs: list[Tensor], parameters: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Return the outputs of one chunk, computed with these values of the parameters."""
        if self.module is None:
            result = self.fn(*inputs, *parameters)
        else:
            with replaced_parameters(self.module, self.parameters, parameters):
                result = self.fn(*inputs)
        self.returns_tuple = isinstance(result, tuple)
        outputs = result if isinstance(result, tuple) else (result,)
        expected = inputs[0].shape[self.axis]
        for output in outputs:
            if output.ndim <= self.axis or output.shape[self.axis] != expected:
                raise ShapeError(
                    f"chunk: fn returns shape {tuple(output.shape)} for {expected} tokens; expected {expected} along "
                    f"dim {self.axis}. Only computations that treat each token for itself can be cut."
                )
        return outputs


class _Chunked(torch.autograd.Function):
    """The chunks as one node of the graph, with inputs and parameters as its inputs."""

    @staticmethod
    def forward(ctx: Any, region: _Region, *tensors: Tensor) -> tuple[Tensor, ...]:
        inputs, parameters = tensors[: region.inputs], stand_ins(tensors[region.inputs :])
        ctx.region = region
        ctx.state = ForwardState(inputs[0].device.type, keep_rng=True, tensors=inputs)
        ctx.kept = SavedEarly(*tensors) if region.with_grad else None
        results: list[Tensor] = []
        for start, size in region.bounds():
            outputs = region.run([tensor.narrow(region.axis, start, size) for tensor in inputs], parameters)
            if not results:
                results = [_empty_like(output, region.axis, region.length) for output in outputs]
            for result, output in zip(results, outputs, strict=True):
                result.narrow(region.axis, start, size).copy_(output)
        return tuple(results)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        refuse_double_backward("chunk")
        region: _Region = ctx.region
        tensors = ctx.kept.tensors(release=not graph_is_retained())
        tensors = tuple(t.requires_grad_(need) for t, need in zip(tensors, ctx.needs_input_grad[1:], strict=True))
        inputs, parameters = tensors[: region.inputs], stand_ins(tensors[region.inputs :])
        needs = ctx.needs_input_grad[1:]
        input_gradients = [
            torch.empty_like(tensor) if need else None for tensor, need in zip(inputs, needs, strict=False)
        ]
        chunks = -(-region.length // region.chunk_size)
        sums = [
            GradientSum(parameter, region.accum_dtype, chunks) if need else None
            for parameter, need in zip(parameters, needs[region.inputs :], strict=True)
        ]
        with ctx.state.restored():
            for start, size in region.bounds():
                _differentiate(region, start, size, inputs, parameters, upstream, input_gradients, sums)
        return (None, *input_gradients, *(None if s is None or s.is_empty else s.finish() for s in sums))


def _differentiate(
    region: _Region,
    start: int,
    size: int,
    inputs: tuple[Tensor, ...],
    parameters: tuple[Tensor, ...],
    upstream: tuple[Tensor, ...],
    input_gradients: list[Tensor | None],
    sums: list[GradientSum | None],
) -> None:
    """Repeat one chunk, write its input gradients and add to the sums."""

    def part(tensor: Tensor) -> Tensor:
        return tensor.narrow(region.axis, start, size)

    pieces = [
        part(tensor).detach().requires_grad_(gradient is not None)
        for tensor, gradient in zip(inputs, input_gradients, strict=True)
    ]
    with torch.enable_grad(), graph_of_its_own():
        outputs = region.run(pieces, parameters)
    reached = [(out, part(gradient)) for out, gradient in zip(outputs, upstream, strict=True) if out.requires_grad]
    require_declared_leaves("chunk", outputs, (*pieces, *parameters))
    wanted_inputs = [piece for piece in pieces if piece.requires_grad]
    wanted_parameters = [p for p, total in zip(parameters, sums, strict=True) if total is not None]
    found: tuple[Tensor | None, ...] = (None,) * (len(wanted_inputs) + len(wanted_parameters))
    if reached:
        found = torch.autograd.grad(
            [out for out, _ in reached],
            [*wanted_inputs, *wanted_parameters],
            [gradient for _, gradient in reached],
            allow_unused=True,
        )
    targets = [part(gradient) for gradient in input_gradients if gradient is not None]
    for target, gradient in zip(targets, found, strict=False):
        target.zero_() if gradient is None else target.copy_(gradient)
    totals = [total for total in sums if total is not None]
    for total, gradient in zip(totals, found[len(wanted_inputs) :], strict=True):
        if gradient is not None:
            total.add_(gradient)


def _empty_like(output: Tensor, axis: int, length: int) -> Tensor:
    shape = list(output.shape)
    shape[axis] = length
    return output.new_empty(shape)


def _axis(inputs: tuple[Tensor, ...], dim: int) -> tuple[int, int]:
    """Return the axis that is cut, counted from the front, and its length."""
    first = inputs[0]
    if not -first.ndim <= dim < first.ndim:
        raise ShapeError(
            f"chunk: dim={dim} is no axis of x with shape {tuple(first.shape)}; expected {-first.ndim} <= dim < "
            f"{first.ndim}. Choose the axis of the tokens."
        )
    axis = dim % first.ndim
    for tensor in inputs:
        if tensor.ndim <= axis or tensor.shape[axis] != first.shape[axis]:
            raise ShapeError(
                f"chunk: an input of shape {tuple(tensor.shape)} does not fit {tuple(first.shape)}; expected "
                f"{first.shape[axis]} along dim {axis}. Pass what does not vary with the token in params."
            )
    return axis, first.shape[axis]
