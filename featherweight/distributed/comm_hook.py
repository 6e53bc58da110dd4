"""Whole gradients that exist anyway: what of them has to travel, and the hook of DistributedDataParallel that knows.

A low-rank step sees of the gradient G of a matrix only its core, and every process has the same basis P. So
``P mean(P^T G)`` may stand for ``mean(G)``: the optimizer cannot tell them apart, and r/M of the bytes travel. A matrix
whose basis is due for a refresh, and whatever keeps more than the core, sends its whole gradient.
Shapes: M rows, N columns, R rank.
Source: ours; PowerSGD (arXiv 1905.13727) sends factors of a like size, but of an approximation of G.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim import Optimizer

from featherweight.distributed.reduce import Traffic
from featherweight.errors import ConfigError
from featherweight.linalg.subspace import MatrixSubspace
from featherweight.optim.low_rank import LowRankOptimizer
from featherweight.optim.reduce import BUCKET_BYTES, Reducer
from featherweight.optim.step.matrix import MatrixStep
from featherweight.unwrap import unwrap_optimizer


class Piece:
    """The gradient of one parameter on its way: its cores if they are all that is used of it, else itself.

    Args:
        grad: of the parameter's shape; written in place by `unpack_`.
        step: how the optimizer treats the parameter.
        subspaces: those of its matrices; None to send the gradient as it is.
    """

    def __init__(self, grad: Tensor, step: Any, subspaces: Sequence[MatrixSubspace] | None) -> None:
        self.grad, self._subspaces = grad, subspaces
        self._matrices = [] if subspaces is None else step.layout.matrices(grad)
        self.tensors: list[Tensor] = []
        """What travels; real and contiguous."""
        if subspaces is not None:
            self.tensors = [one.project(grad_MN) for one, grad_MN in zip(subspaces, self._matrices, strict=True)]
        else:
            whole = grad.resolve_conj().contiguous()
            self.tensors = [torch.view_as_real(whole) if whole.is_complex() else whole]

    def unpack_(self) -> None:
        """Write what came back into the gradient."""
        if self._subspaces is None:
            (whole,) = self.tensors
            back = torch.view_as_complex(whole) if self.grad.is_complex() else whole
            if back.data_ptr() != self.grad.data_ptr():
                self.grad.copy_(back)
            return
        for subspace, core, grad_MN in zip(self._subspaces, self.tensors, self._matrices, strict=True):
            grad_MN.copy_(subspace.project_back(core))


def piece_of(optimizer: LowRankOptimizer, parameter: Tensor, grad: Tensor) -> Piece:
    """Return what of a gradient has to travel before the next step of its parameter."""
    step, state = optimizer.step_of(parameter), optimizer.state.get(parameter, {})
    if not isinstance(step, MatrixStep) or not state or step.side_is_open(state) or not grad.is_contiguous():
        return Piece(grad, step, None)
    group = next(group for group in optimizer.param_groups if any(one is parameter for one in group["params"]))
    matrices = step.matrices(optimizer.member(parameter, group))
    layout = step.layout
    is_whole = not layout.residual.is_plain or layout.seeded_basis == "gaussian"
    if is_whole or any(one.refresh_is_due() or not one.has_subspace() for one in matrices):
        return Piece(grad, step, None)
    return Piece(grad, step, [one.subspace() for one in matrices])


@torch.no_grad()
def average_gradients_(optimizer: Optimizer, reducer: Reducer, *, whole: bool = False) -> None:
    """Replace the gradients of an optimizer's parameters by their means over the processes, as far as they are used.

    Args:
        optimizer: one of `fw.optim`, between the last backward pass and its step.
        reducer: of the model.
        whole: send whole gradients, whose norm is then known.
    Raises:
        ConfigError: if the processes have gradients of different parameters.
    """
    inner = _low_rank(optimizer)
    pending = [
        p for group in inner.param_groups for p in group["params"] if p.grad is not None and not p.grad.is_sparse
    ]
    layouts = inner.layouts
    reducer.require_same([layouts[parameter].name for parameter in pending])
    for members in _buckets(pending):
        grads = [(one, one.grad) for one in members if one.grad is not None]
        pieces = [Piece(grad, None, None) if whole else piece_of(inner, one, grad) for one, grad in grads]
        reducer.mean_([tensor for piece in pieces for tensor in piece.tensors])
        for piece in pieces:
            piece.unpack_()


def _buckets(parameters: Iterable[Tensor]) -> Iterable[list[Tensor]]:
    bucket: list[Tensor] = []
    for parameter in parameters:
        bucket.append(parameter)
        if sum(one.nbytes for one in bucket) >= BUCKET_BYTES:
            yield bucket
            bucket = []
    if bucket:
        yield bucket


class HookState:
    """What the hook of one model knows; made by `core_hook`."""

    def __init__(self, optimizer: LowRankOptimizer, group: Any) -> None:
        self.optimizer, self.group = optimizer, group
        self.traffic = Traffic()
        """What the hook has sent."""


def core_hook(
    optimizer: Optimizer, *, process_group: Any = None
) -> tuple[HookState, Callable[[HookState, Any], torch.futures.Future[Tensor]]]:
    """Return state and hook for ``model.register_comm_hook(*core_hook(optimizer))`` of a DistributedDataParallel model.

    In every bucket cores travel instead of gradients; the means that come back are equal to those of plain DDP as far
    as the optimizer uses them. The buckets keep their memory.

    Args:
        optimizer: one of `fw.optim`, not layer-wise, of the parameters inside the model.
        process_group: that of the model; None for the default one.
    Raises:
        ConfigError: for another kind of optimizer, or a layer-wise one.
    Example:
        >>> import featherweight as fw
        >>> weights = [torch.nn.Parameter(torch.zeros(16, 32))]
        >>> state, hook = core_hook(fw.optim.GaLoreAdamW(weights, rank=4))
        >>> hook.__name__
        'send_cores'
    """
    return HookState(_low_rank(optimizer), process_group), send_cores


def send_cores(state: HookState, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """Average one bucket of gradients; see `core_hook`. (A function, because DDP reads its ``__name__``.)"""
    buffer: Tensor = bucket.buffer()
    with torch.no_grad():
        pairs = zip(bucket.parameters(), bucket.gradients(), strict=True)
        pieces = [piece_of(state.optimizer, parameter, grad) for parameter, grad in pairs]
    tensors = [tensor for piece in pieces for tensor in piece.tensors]
    flat = torch.cat([tensor.reshape(-1).to(buffer.dtype) for tensor in tensors])
    state.traffic.count("all_reduce", tensors, flat.nbytes)
    work = dist.all_reduce(flat, group=state.group, async_op=True)

    def unpack(future: torch.futures.Future[list[Tensor]]) -> Tensor:
        (total,) = future.value()
        total.div_(dist.get_world_size(state.group))
        with torch.no_grad():
            for tensor, part in zip(tensors, total.split([one.numel() for one in tensors]), strict=True):
                tensor.copy_(part.view(tensor.shape))
            for piece in pieces:
                piece.unpack_()
        return buffer

    result: torch.futures.Future[Tensor] = work.get_future().then(unpack)
    return result


def _low_rank(optimizer: Optimizer) -> LowRankOptimizer:
    inner = unwrap_optimizer(optimizer)
    if not isinstance(inner, LowRankOptimizer) or inner.layerwise is not None:
        found = type(inner).__name__ + (", layer-wise" if isinstance(inner, LowRankOptimizer) else "")
        raise ConfigError(
            f"distributed.core_hook: optimizer={found} has no cores to send here; expected one of fw.optim that is not "
            'layer-wise. Layer-wise ones send cores by themselves: fw.distributed.shard(model, "ddp").'
        )
    return inner
