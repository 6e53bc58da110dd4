"""One recipe of a plan: what it is, what its simulated steps need, and how fast they might be."""

from dataclasses import dataclass
from typing import Any

from featherweight.planner.allocations import allocation_dict
from featherweight.planner.host import HostNeed
from featherweight.planner.need import Need
from featherweight.training.estimate import MemoryEstimate
from featherweight.training.recipe import Recipe


@dataclass(frozen=True)
class PlanRow:
    """One recipe of a plan, simulated."""

    family: str
    """What is trained."""
    keeping: str
    """How activations are kept."""
    tags: tuple[str, ...]
    """What is given up against float32 AdamW of all parameters."""
    recipe: Recipe
    """The complete recipe."""
    estimate: MemoryEstimate
    """Its steps."""
    need: Need
    """What they take of the device."""
    tokens_per_s: float
    """By the time model; for comparison with other rows, not a promise."""
    host: HostNeed | None = None
    """What the step keeps on the host, where that has a budget."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "family": self.family,
            "keeping": self.keeping,
            "tags": list(self.tags),
            "total_bytes": self.need.total_bytes,
            "interval": [self.need.low_bytes, self.need.high_bytes],
            "peak_allocated_bytes": self.need.allocated_bytes,
            "peak_reserved_bytes": self.need.reserved_bytes,
            "allocator_retries": self.need.retries,
            "context_bytes": self.need.context_bytes,
            "workspace_bytes": self.need.workspace_bytes,
            "by_category": self.estimate.peak_by_category,
            "by_module": dict(list(self.estimate.peak_by_module.items())[:20]),
            "top_allocations": [allocation_dict(one) for one in self.estimate.top_allocations(10)],
            "tokens_per_s": round(self.tokens_per_s, 1),
            "recipe": self.recipe.to_dict(),
            **({} if self.host is None else {"host_bytes": self.host.total_bytes}),
        }
