"""Memory of a training step: measured by storage and by role, on real or fake tensors. Knows no recipes."""

from featherweight.memory.ledger import CATEGORIES, Allocation
from featherweight.memory.measure import MemoryMeasurement, measure_memory
from featherweight.memory.tracker import StorageTracker

__all__ = ["CATEGORIES", "Allocation", "MemoryMeasurement", "StorageTracker", "measure_memory"]
