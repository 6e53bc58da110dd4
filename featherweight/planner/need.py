"""What a simulated step takes of a whole device: tensors, the allocator's segments, workspaces and the context."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from featherweight.memory import Calibration, Replay, replay
from featherweight.planner.target import Target
from featherweight.training.estimate import MemoryEstimate

_ENDLESS_BYTES = 2**60
_SHARES = (1.02, 1.05, 1.1, 1.2, 1.4, 2.0)
"""Segments, as multiples of the tensors in them, that are tried for the smallest device."""
_HOST_PROCESS_BYTES = 500 * 2**20
"""Python, torch and their libraries in a process on a CPU; about what such a process shows before it has tensors."""


@dataclass(frozen=True)
class Need:
    """Bytes of a device, from the tensors outwards."""

    allocated_bytes: int
    """Peak of the tensors."""
    reserved_bytes: int
    """Peak of the allocator's segments, which hold them: as many as it likes to keep, or what the budget leaves it."""
    workspace_bytes: int
    """What libraries keep for their kernels."""
    context_bytes: int
    """The CUDA context and loaded kernels; on a CPU the process itself."""
    low_bytes: int
    """Low end of the interval around `total_bytes`."""
    high_bytes: int
    """High end of it."""
    retries: int = 0
    """Times in the simulated steps that the allocator gives cached segments back, as the budget holds no new one; each
    makes the device wait."""

    @property
    def total_bytes(self) -> int:
        """All of it."""
        return self.reserved_bytes + self.workspace_bytes + self.context_bytes

    def fits(self, target: Target) -> bool:
        """Tell whether it stays within the budget, margin included."""
        return self.total_bytes <= target.usable_bytes


def need_of(estimate: MemoryEstimate, target: Target) -> Need:
    """Return what a simulated step takes of a device.

    The allocator keeps segments that nobody uses until the device has none left. So where it would keep more than the
    budget, the steps are replayed under the budget.

    Args:
        estimate: simulated for this kind of device.
        target: the device.
    Cost: about 5 microseconds an event of the timeline, twice that under pressure.
    """
    if target.calibration is None:
        total = estimate.peak_bytes + _HOST_PROCESS_BYTES
        return Need(
            estimate.peak_bytes, estimate.peak_bytes, 0, _HOST_PROCESS_BYTES, int(total * 0.9), int(total * 1.1)
        )
    events = estimate.timeline.numbered()
    return _under_budget(events, target, target.calibration, replay(events, target.allocator))


def _under_budget(events: Sequence[tuple[int, int]], target: Target, known: Calibration, free: Replay) -> Need:
    """Return the need from a replay without end, or from one under the budget where the first would not fit."""
    result, allocated = free, free.requested_peak_bytes
    workspace, context = known.cublas_workspace_bytes, known.context_bytes
    room = target.usable_bytes - workspace - context
    if result.allocated_peak_bytes <= room < result.reserved_peak_bytes:
        pressed = replay(events, target.allocator, limit_bytes=room)
        result = result if pressed.out_of_memory_at is not None else pressed
    reserved = result.reserved_peak_bytes
    low, high = known.interval("context_bytes")
    error = known.allocator_error
    return Need(
        allocated,
        reserved,
        workspace,
        context,
        max(allocated, int(reserved * (1 - error))) + int(low),
        int(reserved * (1 + error)) + workspace + int(high),
        result.retries,
    )


def smallest_need_of(estimate: MemoryEstimate, target: Target) -> Need:
    """Return what a simulated step takes of the smallest device like a target that holds it.

    Args:
        estimate: simulated for this kind of device.
        target: a device of any size.
    Cost: one replay or a few where the allocator likes to keep much more than the tensors.
    """
    endless = replace(target, budget_bytes=_ENDLESS_BYTES)
    if target.calibration is None:
        return need_of(estimate, endless)
    events = estimate.timeline.numbered()  # not kept with the timeline: a plan holds many of those
    replayed = replay(events, target.allocator)
    free = _under_budget(events, endless, target.calibration, replayed)
    beside = free.total_bytes - free.reserved_bytes
    for share in _SHARES:
        tried = int(share * free.allocated_bytes)
        if tried >= free.reserved_bytes:
            break
        smaller = replace(target, budget_bytes=_budget_of(tried + beside, target))
        pressed = _under_budget(events, smaller, target.calibration, replayed)
        if pressed.reserved_bytes <= tried:
            return pressed
    return free


def expandable_need_of(estimate: MemoryEstimate, target: Target) -> Need:
    """Return what a simulated step takes if the allocator's segments may grow, as ``expandable_segments:True`` says.

    Args:
        estimate: simulated for this kind of device.
        target: the device.
    Cost: one replay.
    """
    growing = target.allocator.model_copy(update={"expandable_segments": True})
    return need_of(estimate, replace(target, allocator=growing))


def _budget_of(total_bytes: int, target: Target) -> int:
    """Return the least budget that leaves so much beside the margin."""
    return math.ceil(total_bytes / (1 - target.margin))
