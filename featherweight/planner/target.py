"""What a plan is made for: a kind of device, its memory, and how fast it is."""

import os
from dataclasses import dataclass

import torch

from featherweight.config import parse_bytes
from featherweight.errors import ConfigError
from featherweight.memory import AllocatorOptions, Calibration, find_card, load_calibration
from featherweight.memory.cards import CARDS
from featherweight.simulated import SimulatedDevice

_CPU_MARGIN = 0.08
_TYPICAL = {8: "RTX 4060", 10: "RTX 3080", 12: "RTX 4070", 16: "RTX 4080", 24: "RTX 4090", 32: "RTX 5090"}
_TYPICAL |= {48: "L40S", 80: "H100", 141: "H200"}


@dataclass(frozen=True)
class Target:
    """A device with a budget."""

    name: str
    """Name of the card, or "CPU"."""
    kind: str
    """cuda or cpu."""
    budget_bytes: int
    """What the whole process may take of the device's memory."""
    calibration: Calibration | None
    """What the card costs and reaches; None for a CPU."""
    allocator: AllocatorOptions
    """Settings of PyTorch's allocator."""
    is_assumed: bool = False
    """Nobody named the card: it is a common one of this size."""

    @property
    def device(self) -> SimulatedDevice:
        """The device as a simulation takes it."""
        return SimulatedDevice(self.kind, self.budget_bytes)

    @property
    def margin(self) -> float:
        """Share of the budget that is left free."""
        return _CPU_MARGIN if self.calibration is None else self.calibration.margin

    @property
    def usable_bytes(self) -> int:
        """Budget without the margin."""
        return int(self.budget_bytes * (1 - self.margin))

    @classmethod
    def of(
        cls,
        budget: str | int | None = None,
        device: str | torch.device | None = None,
        *,
        calibration: str | os.PathLike[str] | None = None,
    ) -> "Target":
        """Find out what is meant.

        Args:
            budget: bytes, or text such as "12GB" (10**9) or "12GiB" (2**30); None takes all of the card.
            device: a card ("rtx4090"), "cuda" for the one in this machine, "cpu"; None takes that of this machine, or a
                common card of the budget's size.
            calibration: a file to read instead of the user's own.
        Raises:
            ConfigError: if neither says how much memory there is, or a name or size is unknown.
        """
        size = None if budget is None else parse_bytes(budget)
        name = None if device is None else str(device)
        if name == "cpu":
            return cls("CPU", "cpu", size or _host_bytes(), None, AllocatorOptions())
        is_assumed = False
        total = None
        if name is None or name.startswith("cuda"):
            if torch.cuda.is_available():
                index = torch.device(name or "cuda")
                total = torch.cuda.get_device_properties(index).total_memory
                name = torch.cuda.get_device_name(index)
            elif size is not None:
                name, is_assumed = _typical(size), True
            else:
                raise ConfigError(
                    "plan: budget=None says nothing, and this machine has no GPU; expected a budget such as 12GB or a "
                    "card such as rtx4090. Name one of them."
                )
        known = load_calibration(name, calibration)
        total = total or find_card(name).memory_bytes
        options = AllocatorOptions.from_text(os.environ.get("PYTORCH_CUDA_ALLOC_CONF", ""))
        return cls(known.card, "cuda", size or total, known, options, is_assumed)


def _typical(size: int) -> str:
    gib = size / 2**30
    fitting = [name for limit, name in sorted(_TYPICAL.items()) if limit >= gib - 0.01]
    return fitting[0] if fitting else max(CARDS, key=lambda card: card.memory_bytes).name


def _host_bytes() -> int:
    import psutil

    return int(psutil.virtual_memory().total)
