"""Memory of a training step: measured by storage and by role, on real or fake tensors. Knows no recipes.

Beside it stands what a card adds: the allocator's segments, the context, and how fast it is. Names load on first use: a
card is known by name without torch.
"""

from typing import TYPE_CHECKING, Any

from featherweight.lazy_names import load_name

if TYPE_CHECKING:
    from featherweight.memory.allocator import CachingAllocator, Replay, replay
    from featherweight.memory.allocator_options import AllocatorOptions
    from featherweight.memory.calibration import (
        Calibration,
        default_calibration,
        load_calibration,
        measure_calibration,
        save_calibration,
    )
    from featherweight.memory.cards import Card, find_card
    from featherweight.memory.ledger import CATEGORIES, Allocation
    from featherweight.memory.measure import MemoryMeasurement, measure_memory
    from featherweight.memory.snapshot import compare_snapshot
    from featherweight.memory.tracker import StorageTracker
    from featherweight.memory.workspace import workspace_bytes

_LAZY = {
    "Allocation": "featherweight.memory.ledger",
    "AllocatorOptions": "featherweight.memory.allocator_options",
    "CATEGORIES": "featherweight.memory.ledger",
    "CachingAllocator": "featherweight.memory.allocator",
    "Calibration": "featherweight.memory.calibration",
    "Card": "featherweight.memory.cards",
    "MemoryMeasurement": "featherweight.memory.measure",
    "Replay": "featherweight.memory.allocator",
    "StorageTracker": "featherweight.memory.tracker",
    "compare_snapshot": "featherweight.memory.snapshot",
    "default_calibration": "featherweight.memory.calibration",
    "find_card": "featherweight.memory.cards",
    "load_calibration": "featherweight.memory.calibration",
    "measure_calibration": "featherweight.memory.calibration",
    "measure_memory": "featherweight.memory.measure",
    "replay": "featherweight.memory.allocator",
    "save_calibration": "featherweight.memory.calibration",
    "workspace_bytes": "featherweight.memory.workspace",
}

__all__ = [
    "CATEGORIES",
    "Allocation",
    "AllocatorOptions",
    "CachingAllocator",
    "Calibration",
    "Card",
    "MemoryMeasurement",
    "Replay",
    "StorageTracker",
    "compare_snapshot",
    "default_calibration",
    "find_card",
    "load_calibration",
    "measure_calibration",
    "measure_memory",
    "replay",
    "save_calibration",
    "workspace_bytes",
]


def __getattr__(name: str) -> Any:
    return load_name(__name__, _LAZY, name)


def __dir__() -> list[str]:
    return sorted(__all__)
