"""Replays what a GPU run recorded through the allocator's model, and compares the reserved peak with the recorded one.

A snapshot is what ``torch.cuda.memory._snapshot()`` returns after ``torch.cuda.memory._record_memory_history()``; from
then on the trace holds each allocation and free, and each segment or page that came from the driver or went back.
Source: torch/cuda/memory.py, docstring of `_snapshot`, which describes the fields.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from featherweight.errors import ConfigError
from featherweight.memory.allocator import Replay, replay
from featherweight.memory.allocator_options import AllocatorOptions

# What each action does to the reserved bytes.
_FROM_DRIVER = {"segment_alloc": 1, "segment_map": 1, "segment_free": -1, "segment_unmap": -1}


@dataclasses.dataclass(frozen=True)
class SnapshotComparison:
    """A recorded run beside its replay."""

    replay: Replay
    """What the model says."""
    recorded_reserved_peak_bytes: int
    """What the run took from the driver."""
    streams: int
    """Streams that allocated. The model knows one; several keep blocks from each other and reserve more."""

    @property
    def error(self) -> float:
        """Replayed over recorded reserved peak, minus one: 0.02 is two per cent too much."""
        recorded_bytes = self.recorded_reserved_peak_bytes
        return self.replay.reserved_peak_bytes / recorded_bytes - 1 if recorded_bytes else 0.0


def compare_snapshot(
    snapshot: Mapping[str, Any],
    options: AllocatorOptions | None = None,
    *,
    device: int = 0,
    limit_bytes: int | None = None,
) -> SnapshotComparison:
    """Replay a snapshot and compare its reserved peak with the recorded one.

    Calls of ``torch.cuda.empty_cache`` leave no mark of their own in a snapshot and are not replayed.

    Args:
        snapshot: what ``torch.cuda.memory._snapshot()`` returned; recorded from before the first allocation.
        options: the allocator's settings in that run; default: PyTorch's defaults.
        device: number of the CUDA device.
        limit_bytes: the limit of that run, if it had one.
    Raises:
        ConfigError: if the snapshot is no such thing, or begins after memory was allocated.
    """
    trace = _trace(snapshot, device)
    return SnapshotComparison(
        replay=replay(events_of_snapshot(snapshot, device=device), options, limit_bytes=limit_bytes),
        recorded_reserved_peak_bytes=recorded_reserved_peak(snapshot, device=device),
        streams=len({entry["stream"] for entry in trace if entry["action"] == "alloc"}),
    )


def events_of_snapshot(snapshot: Mapping[str, Any], *, device: int = 0) -> list[tuple[int, int]]:
    """Return the allocations and frees of a snapshot, for `featherweight.memory.allocator.replay`.

    A block is free when its free has completed, which for a block that several streams used is later than requested.

    Returns:
        Pairs of an identity and a size in bytes, in order; a negative size frees.
    Raises:
        ConfigError: if the snapshot is no such thing, or frees what it has not allocated.
    """
    events: list[tuple[int, int]] = []
    alive: dict[int, tuple[int, int]] = {}  # by address, which is used again and again
    for entry in _trace(snapshot, device):
        address = entry["addr"]
        if entry["action"] == "alloc":
            alive[address] = len(events), entry["size"]
            events.append(alive[address])
        elif entry["action"] == "free_completed":
            if address not in alive:
                raise _began_late(f"addr={address:#x} is freed but was never allocated")
            identity, size_bytes = alive.pop(address)
            events.append((identity, -size_bytes))
    return events


def recorded_reserved_peak(snapshot: Mapping[str, Any], *, device: int = 0) -> int:
    """Return the most bytes that the recorded run held from the driver.

    Raises:
        ConfigError: if the snapshot is no such thing, or holds segments that its trace does not explain.
    """
    reserved_bytes = peak_bytes = 0
    for entry in _trace(snapshot, device):
        reserved_bytes += _FROM_DRIVER.get(entry["action"], 0) * entry["size"]
        peak_bytes = max(peak_bytes, reserved_bytes)
    held_bytes = sum(one["total_size"] for one in snapshot["segments"] if one.get("device", 0) == device)
    if held_bytes != reserved_bytes:
        raise _began_late(f"segments={held_bytes} bytes are held at the end, but the trace explains {reserved_bytes}")
    return peak_bytes


def _trace(snapshot: Mapping[str, Any], device: int) -> list[dict[str, Any]]:
    if not isinstance(snapshot, Mapping) or not {"segments", "device_traces"} <= set(snapshot):
        raise ConfigError(
            f"snapshot: value={type(snapshot).__name__} is no snapshot; expected a mapping with 'segments' and "
            "'device_traces'. Give what torch.cuda.memory._snapshot() returns."
        )
    traces = snapshot["device_traces"]
    if not 0 <= device < len(traces):
        raise ConfigError(
            f"snapshot: device={device} is not recorded; expected a number below {len(traces)}. "
            "Choose the device that the run used."
        )
    return list(traces[device])


def _began_late(what: str) -> ConfigError:
    return ConfigError(
        f"snapshot: {what}; expected a recording from before the first allocation, without lost entries. "
        "Call torch.cuda.memory._record_memory_history() at the start of a fresh process, with enough max_entries."
    )
