"""What one of several processes holds of a model and its optimizer, by formula: without processes, data or weights.

The layouts of the optimizer are planned for rows as a run plans them, so bytes of state are those of a run to the byte.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from featherweight.distributed.layer_groups import layer_groups
from featherweight.distributed.placement import takes_columns
from featherweight.optim.backward.core_receiver import why_full
from featherweight.optim.backward.core_sum import core_sum_bytes
from featherweight.optim.reduce import BUCKET_BYTES
from featherweight.optim.sharding import ParameterShard, register_shard, shard_of
from featherweight.optim.step.layout import Layout
from featherweight.optim.step.matrix_layout import MatrixLayout
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
        weights, optimizer_state (with all bases whole), gradients and gathered (weights that are whole while layers use
        them) in bytes of this process; elements of the model: projected, cores, left_cores, left_sums (of cores whose
        gradient is formed), others; weight_bytes, those that are gathered when all weights are; and, should bases be
        shared, bases and shared_bases (bytes of all, whole and at hand) and basis_bytes_gathered (in a step).
    Raises:
        ConfigError: for what has no form on rows.
    """
    model, optimizer = loop.model, loop.optimizer
    if shard_size > 1:
        _share(loop, shard_size)
        optimizer.forget_layouts()
    layouts: dict[Tensor, Layout] = optimizer.layouts
    cored = {parameter for parameter, layout in layouts.items() if leaves_core(loop, parameter, layout)}
    sizes = _sizes(layouts, cored)
    groups = [[_weight_bytes(parameter) for parameter in group] for group in layer_groups(model)]
    largest, rest = max([sum(group) for group in groups[:-1]], default=0), sum(groups[-1])
    return {
        "weights": sum(_weight_bytes(parameter, is_at_hand=shard_size > 1) for parameter in model.parameters()),
        "optimizer_state": optimizer.state_bytes(),
        "gradients": _gradient_bytes(loop, layouts, cored, shard_size),
        "gathered": rest + 2 * largest if shard_size > 1 else 0,  # one in use, one on its way
        "weight_bytes": sum(map(sum, groups)),
        **sizes,
        **_bases(loop, layouts, cored),
    }


def _share(loop: Loop, shard_size: int) -> None:
    """Register rows of all parameters, or columns where the recipe wants these."""
    by_columns = loop.recipe.sharding.placement == "side"
    planned: dict[Tensor, Layout] = loop.optimizer.layouts
    for parameter in loop.model.parameters():
        is_int8, layout = int8_weight_of(parameter) is not None, planned.get(parameter)
        axis = int(by_columns and not is_int8 and layout is not None and takes_columns(layout, shard_size))
        stop = -(-parameter.shape[axis] // shard_size)
        stand_in = parameter.detach()[:stop] if is_int8 else None
        shape = tuple(parameter.shape)
        register_shard(parameter, ParameterShard(shape, 0, stop, _Counted(shard_size), rows=stand_in, axis=axis))


def _sizes(layouts: Mapping[Tensor, Layout], cored: Collection[Tensor]) -> dict[str, int]:
    """Return elements by what becomes of their gradients; see `shares_of`."""
    sizes = {"projected": 0, "cores": 0, "left_cores": 0, "left_sums": 0, "others": 0}
    for one, layout in layouts.items():
        is_summed = isinstance(layout, MatrixLayout) and layout.side == "left" and layout.row_stride is None
        count = layout.count * math.prod(layout.whole.core_shape) if isinstance(layout, MatrixLayout) else 0
        if one in cored:
            sizes["projected"] += one.numel()
            sizes["cores"] += count
            sizes["left_cores"] += count if is_summed else 0
        else:
            sizes["others"] += one.numel()
            sizes["left_sums"] += count if is_summed and layout.shard is not None else 0
    return sizes


def _bases(loop: Loop, layouts: Mapping[Tensor, Layout], cored: Collection[Tensor]) -> dict[str, int]:
    """Return the bytes of all bases, whole and at hand, and those that are gathered in a step, if they are shared."""
    recipe, handle = loop.recipe, loop.layerwise
    is_repeated = recipe.activation_checkpointing or any(one.checkpoints_activations for one in loop.methods)
    is_measured = handle is not None and handle.max_grad_norm is not None and handle.clip != "projected"
    found = {"bases": 0, "shared_bases": 0, "basis_bytes_gathered": 0, "largest_basis": 0}
    for one, layout in layouts.items():
        if not isinstance(layout, MatrixLayout) or layout.shard is None or layout.basis is None:
            continue
        shared = replace(layout, shard=replace(layout.shard, shares_bases=True))
        whole = layout.basis_bytes()
        uses = 0 if shared.has_own_basis else 1  # of the update
        if one in cored:
            passes = recipe.accumulation_steps * (2 if is_repeated and layout.side == "right" else 1)
            uses += passes + int(is_measured)
        found["bases"] += whole
        found["shared_bases"] += shared.basis_bytes()
        found["basis_bytes_gathered"] += uses * whole
        found["largest_basis"] = max(found["largest_basis"], whole)
    return found


def with_shared_bases(facts: Mapping[str, int]) -> dict[str, int]:
    """Return what `shares_of` has returned for processes that share their bases."""
    state = facts["optimizer_state"] - facts["bases"] + facts["shared_bases"]
    return {**facts, "optimizer_state": state, "gathered": facts["gathered"] + facts["largest_basis"]}


def leaves_core(loop: Loop, parameter: Tensor, layout: Layout) -> bool:
    """Say whether the gradient of a parameter is not formed in a run of this loop's recipe."""
    method: Any = next((one for one in loop.methods if type(one).__name__ == "CoreGradient"), None)
    if method is None or loop.layerwise is None:
        return False
    return why_full(layout, parameter.element_size(), method.prefer) is None


def _weight_bytes(parameter: Tensor, *, is_at_hand: bool = False) -> int:
    shard = shard_of(parameter) if is_at_hand else None
    numel = parameter.numel() if shard is None else math.prod(shard.shape)
    int8 = int8_weight_of(parameter)
    if int8 is not None:
        return int8.nbytes // parameter.shape[0] * (numel // parameter.shape[1]) + parameter.element_size()
    return numel * parameter.element_size()


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
    rows = sum(_weight_bytes(p, is_at_hand=True) for group in formed for p in group if int8_weight_of(p) is None)
    return largest + (cores + rows if waits else min(cores, BUCKET_BYTES))
