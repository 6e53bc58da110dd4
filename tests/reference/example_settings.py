"""Settings of every shape that the tests of `featherweight.config` need."""

from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import Field

from featherweight.config import Config
from featherweight.errors import ConfigError


class Adam(Config):
    name: Literal["adam"] = "adam"
    """Which optimizer."""
    lr: float = Field(default=1e-3, gt=0, le=1)
    """Peak learning rate. Twice is too much."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of both moments, per step."""


class Galore(Config):
    name: Literal["galore"] = "galore"
    """Which optimizer."""
    rank: int | float = Field(default=128, gt=0)
    """Rank of the subspace, or a fraction of the smaller side."""
    state_bits: Literal[32, 8, 4] = 32
    """Bits of a stored moment."""


class Recipe(Config):
    steps: int = Field(ge=1)
    """Optimizer steps."""
    optimizer: Adam | Galore = Field(default=Adam(), discriminator="name")
    """How weights change."""
    either: Adam | int = 3
    """A union without discriminator."""
    warmup: Adam | None = None
    """None: no warm-up."""
    task: dict[str, Any] = {}
    """Options of the task, checked by the task."""
    stages: list[Galore] = []
    """One after the other."""
    out: Path | None = None
    """Folder; None: a new one."""
    compile: bool = False
    """Compile the model."""
    note: str = ""
    """Any text."""


def message_of(make, *arguments, **keywords):
    """Return the text of the ConfigError that a call raises."""
    with pytest.raises(ConfigError) as caught:
        make(*arguments, **keywords)
    return str(caught.value)
