"""Memory of a training step: measured by storage and by role, on real or fake tensors. Knows no recipes.

Beside it stands what a card adds: the allocator's segments, the context, and how fast it is.
"""

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
