"""What a run tells its listeners, and the listener's base class."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn
from torch.optim import Optimizer

from featherweight.training.task import Words

if TYPE_CHECKING:
    from featherweight.training.footprint import Footprint
    from featherweight.training.recipe import Recipe


@dataclass(frozen=True)
class Event:
    """A moment of a run."""

    recipe: "Recipe"
    """What is being run."""
    step: int
    """Optimizer steps that are done."""
    model: nn.Module
    """The model, after that step."""
    optimizer: Optimizer
    """The optimizer, after that step."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Numbers of this moment. After a step: loss (per item), lr, grad_norm (before clipping), the items so far
    (`words.count_key`: tokens, samples, ...), seconds (of the step), items a second so far (`words.rate_key`),
    skipped_steps. After an evaluation: whatever the task measures."""
    words: Words = field(default_factory=Words)
    """What the task counts and measures."""
    footprint: "Footprint | None" = None
    """Memory, predicted and measured so far."""
    checkpoint: Path | None = None
    """The folder that was written; only in `on_checkpoint`."""
    share: float = 0.0
    """How much of the step after these is done, in (0, 1]; only in `on_progress`, whose `notice` says where it is."""
    notice: str = ""
    """What the user should know; only in `on_notice` and `on_progress`."""


class Callback:
    """A listener to a run; override what is of interest. Listeners watch: a run's numbers must not depend on them."""

    def on_start(self, event: Event) -> None:
        """Before the first step, also of a resumed run (`event.step` says where it starts)."""

    def on_progress(self, event: Event) -> None:
        """Now and then inside of a step that goes layer by layer; `event.share` says how much of it is done."""

    def on_step(self, event: Event) -> None:
        """After each optimizer step."""

    def on_evaluate(self, event: Event) -> None:
        """After each evaluation on the held-out split."""

    def on_checkpoint(self, event: Event) -> None:
        """After each complete checkpoint."""

    def on_notice(self, event: Event) -> None:
        """When something looks wrong that does not end the run; `event.notice` says what."""

    def on_end(self, event: Event) -> None:
        """At the end, also after an error or an interruption; `event.step` says how far it came."""
