"""What a simulated step takes of a whole device: tensors, the allocator's segments, workspaces and the context."""

from dataclasses import dataclass

from featherweight.memory import replay
from featherweight.planner.target import Target
from featherweight.training.estimate import MemoryEstimate

_HOST_PROCESS_BYTES = 500 * 2**20
"""Python, torch and their libraries in a process on a CPU; about what such a process shows before it has tensors."""


@dataclass(frozen=True)
class Need:
    """Bytes of a device, from the tensors outwards."""

    allocated_bytes: int
    """Peak of the tensors."""
    reserved_bytes: int
    """Peak of the allocator's segments, which hold them."""
    workspace_bytes: int
    """What libraries keep for their kernels."""
    context_bytes: int
    """The CUDA context and loaded kernels; on a CPU the process itself."""
    low_bytes: int
    """Low end of the interval around `total_bytes`."""
    high_bytes: int
    """High end of it."""

    @property
    def total_bytes(self) -> int:
        """All of it."""
        return self.reserved_bytes + self.workspace_bytes + self.context_bytes

    def fits(self, target: Target) -> bool:
        """Tell whether it stays within the budget, margin included."""
        return self.total_bytes <= target.usable_bytes


def need_of(estimate: MemoryEstimate, target: Target) -> Need:
    """Return what a simulated step takes of a device.

    Args:
        estimate: simulated for this kind of device.
        target: the device.
    Cost: about 5 microseconds an event of the timeline.
    """
    allocated = estimate.peak_bytes
    if target.calibration is None:
        total = allocated + _HOST_PROCESS_BYTES
        return Need(allocated, allocated, 0, _HOST_PROCESS_BYTES, int(total * 0.9), int(total * 1.1))
    known = target.calibration
    result = replay(estimate.timeline.numbered(), target.allocator)
    reserved, workspace, context = result.reserved_peak_bytes, known.cublas_workspace_bytes, known.context_bytes
    low, high = known.interval("context_bytes")
    error = known.allocator_error
    return Need(
        allocated,
        reserved,
        workspace,
        context,
        max(allocated, int(reserved * (1 - error))) + int(low),
        int(reserved * (1 + error)) + workspace + int(high),
    )
