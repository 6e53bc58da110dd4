"""What one of several processes holds of a model and its optimizer, by formula: without processes, data or weights.

The layouts of the optimizer are planned for rows as a run plans them, so bytes of state are those of a run to the byte.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from featherweight.distributed.layer_groups import layer_groups
from featherweight.optim.backward.core_receiver import why_full
from featherweight.optim.backward.core_sum import core_sum_bytes
from featherweight.optim.reduce import BUCKET_BYTES
from featherweight.optim.sharding import ParameterShard, register_shard
from featherweight.optim.step.layout import Layout, MatrixLayout
from featherweight.quant.int8_weight import int8_weight_of
from featherweight.training.loop import Loop

WIRE_BYTES = 4
"""Of an element of a gradient or core on its way."""


@dataclass(frozen=True)
class _Counted:
    """Collectives of processes that are not there: whoever plans, sends nothing."""

    world_size: int
    position: int = 0

    def sum_(self, tensor: Tensor) -> None:
        """See `Collectives.sum_`."""

    def gather_rows(self, rows: Tensor, total: int) -> Tensor:
        """See `Collectives.gather_rows`."""
        raise NotImplementedError

    def mean_rows(self, wholes: Sequence[Tensor]) -> list[Tensor]:
        """See `Collectives.mean_rows`."""
        raise NotImplementedError

    def sum_rows(self, whole: Tensor) -> Tensor:
        """See `Collectives.sum_rows`."""
        raise NotImplementedError

    def sums(self, values: Sequence[float]) -> list[float]:
        """See `Collectives.sums`."""
        return list(values)

    def all_true(self, flags: Sequence[bool]) -> list[bool]:
        """See `Collectives.all_true`."""
        return list(flags)

    def distribute(self, part: Tensor, total: int, axis: int = 0) -> Tensor:
        """See `Collectives.distribute`."""
        raise NotImplementedError


def shares_of(loop: Loop, shard_size: int) -> dict[str, int]:
    """Return bytes and elements of the process with most rows, of a loop that was built in a simulation.

    Args:
        loop: of a recipe by shape alone; its optimizer is planned anew.
        shard_size: processes that share one copy; 1 for whole copies (ddp).
    Returns:
        weights, optimizer_state, gradients and gathered (weights that are whole while layers use them) in bytes of
        this process; elements of the model: projected, cores, left_cores, others; and weight_bytes, those that are
        gathered when all weights are.
    Raises:
        ConfigError: for what has no form on rows.
    """
    model, optimizer = loop.model, loop.optimizer
    if shard_size > 1:
        for parameter in model.parameters():
            rows = -(-parameter.shape[0] // shard_size)
            is_int8 = int8_weight_of(parameter) is not None
            stand_in = parameter.detach()[:rows] if is_int8 else None
            shard = ParameterShard(tuple(parameter.shape), 0, rows, _Counted(shard_size), rows=stand_in)
            register_shard(parameter, shard)
        optimizer.forget_layouts()
    layouts: dict[Tensor, Layout] = optimizer.layouts
    cored = {parameter for parameter, layout in layouts.items() if leaves_core(loop, parameter, layout)}
    sizes = {"projected": 0, "cores": 0, "left_cores": 0, "others": 0}
    for one, layout in layouts.items():
        if one in cored:
            assert isinstance(layout, MatrixLayout)
            count = layout.count * layout.whole.core_shape[0] * layout.whole.core_shape[1]
            sizes["projected"] += one.numel()
            sizes["cores"] += count
            sizes["left_cores"] += count if layout.side == "left" else 0
        else:
            sizes["others"] += one.numel()
    groups = [[_weight_bytes(parameter) for parameter in group] for group in layer_groups(model)]
    largest, rest = max([sum(group) for group in groups[:-1]], default=0), sum(groups[-1])
    return {
        "weights": sum(_weight_bytes(parameter, shard_size) for parameter in model.parameters()),
        "optimizer_state": optimizer.state_bytes(),
        "gradients": _gradient_bytes(loop, layouts, cored, shard_size),
        "gathered": rest + 2 * largest if shard_size > 1 else 0,  # one in use, one on its way
        "weight_bytes": sum(map(sum, groups)),
        **sizes,
    }


def leaves_core(loop: Loop, parameter: Tensor, layout: Layout) -> bool:
    """Say whether the gradient of a parameter is not formed in a run of this loop's recipe."""
    method: Any = next((one for one in loop.methods if type(one).__name__ == "CoreGradient"), None)
    if method is None or loop.layerwise is None:
        return False
    return why_full(layout, parameter.element_size(), method.prefer) is None


def _weight_bytes(parameter: Tensor, shard_size: int = 1) -> int:
    rows = -(-parameter.shape[0] // shard_size) if parameter.ndim else 1
    int8 = int8_weight_of(parameter)
    if int8 is not None:
        return rows * (int8.nbytes // parameter.shape[0]) + parameter.element_size()
    return rows * (parameter.numel() // max(1, parameter.shape[0])) * parameter.element_size()


def _gradient_bytes(loop: Loop, layouts: dict[Tensor, Layout], cored: set[Tensor], shard_size: int) -> int:
    """Return the bytes of gradients, cores and their buffers at the peak of a step."""
    formed = [[p for p in group if p in layouts and p not in cored] for group in layer_groups(loop.model)]
    if shard_size == 1:
        return int(loop.optimizer.gradient_bytes())
    # The gradients of a group are whole until they are summed, beside the buffer in which they are.
    largest = max(sum(p.numel() * (p.element_size() + WIRE_BYTES) for p in group) for group in formed)
    handle = loop.layerwise
    waits = handle is None or handle.accumulation_steps > 1 or handle.clip == "projected"
    estimates_norm = handle is not None and handle.max_grad_norm is not None and handle.clip != "projected"
    cores = 0
    for parameter in cored:
        layout = layouts[parameter]
        assert isinstance(layout, MatrixLayout)
        cores += core_sum_bytes(layout.whole, is_sketched=False, estimates_norm=estimates_norm)
    rows = sum(-(-p.shape[0] // shard_size) * (p.numel() // p.shape[0]) * p.element_size() for g in formed for p in g)
    return largest + (cores + rows if waits else min(cores, BUCKET_BYTES))
