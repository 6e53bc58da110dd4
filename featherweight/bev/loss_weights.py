"""Weights of the terms of the loss, as recipes give them; without torch."""

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from featherweight.config import Config

if TYPE_CHECKING:
    from torch import Tensor


class LossWeights(Config):
    """Weights of the terms."""

    bce: float = Field(default=1.0, ge=0)
    """Weighted binary cross-entropy."""
    iou: float = Field(default=1.0, ge=0)
    """Occupancy-agnostic IoU."""
    uncertainty: float = Field(default=0.001, ge=0)
    """Pull of unseen cells to the prior."""
    cycle: float = Field(default=0.1, ge=0)
    """Restored against true image features."""
    relevance: float = Field(default=0.1, ge=0)
    """Relevance of pixels against their geometry."""
    view: float = Field(default=0.1, ge=0)
    """Classes of the pixels, told from what the cycle restores of the picture; needs the cycle."""
    occupancy: float = Field(default=0.0, ge=0)
    """IoU of cells that hold any object of whatever class: a car taken for a truck costs less than one missed."""
    pitch: float = Field(default=1.0, ge=0)
    """Estimated against true pitch and roll."""
    iou_over: Literal["frame", "micro_batch"] = "frame"
    """Where cells are summed before IoUs are taken: in each frame, so that losses add up over micro-batches and
    processes, or in a micro-batch, whose size then matters."""

    def total(self, terms: "dict[str, Tensor]") -> "Tensor":
        """Return the weighted sum of terms that have a weight."""
        import torch

        return sum((getattr(self, name) * term for name, term in terms.items()), start=torch.zeros(()))
