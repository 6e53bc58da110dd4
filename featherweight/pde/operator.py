"""A neural operator between physical fields: the network, and the scales of its inputs and outputs.

The scales are buffers, so weights and scales are saved together and predictions are in the units of the data.
"""

import json
from pathlib import Path

import torch
from torch import Tensor, nn

from featherweight.config import write_atomically
from featherweight.pde.files import write_torch

EPSILON = 1e-7
"""Added to a standard deviation, as neuraloperator's normaliser does."""


class FieldOperator(nn.Module):
    """Normalise, run the network, and undo the normalisation.

    Args:
        model: maps (B, C, s_1, .., s_d) to (B, C', s_1, .., s_d).
        x: training inputs (n, C, s_1, .., s_d), for mean and deviation of each channel.
        y: training solutions, alike.
    """

    def __init__(self, model: nn.Module, x: Tensor, y: Tensor) -> None:
        super().__init__()
        self.model = model
        for name, fields in (("x", x), ("y", y)):
            axes = (0, *range(2, fields.ndim))
            self.register_buffer(f"{name}_mean", fields.mean(dim=axes, keepdim=True))
            self.register_buffer(f"{name}_std", fields.std(dim=axes, keepdim=True) + EPSILON)

    def forward(self, x: Tensor) -> Tensor:
        """Return the predicted fields, (B, C', s_1, .., s_d), in the units of the solutions."""
        normal = (x - self.get_buffer("x_mean")) / self.get_buffer("x_std")
        dtype = next((p.dtype for p in self.model.parameters() if p.is_floating_point()), x.dtype)
        return self.model(normal.to(dtype)).to(x.dtype) * self.get_buffer("y_std") + self.get_buffer("y_mean")

    def save(self, folder: Path, facts: dict[str, object]) -> None:
        """Write `model.pt` (the network alone, which neuraloperator loads), `scales.pt` and `config.json`."""
        write_torch(folder / "model.pt", dict(self.model.state_dict()))
        write_torch(folder / "scales.pt", {name: buffer for name, buffer in self.named_buffers(recurse=False)})
        write_atomically(folder / "config.json", f"{json.dumps(facts, indent=2, default=str)}\n")

    def load(self, folder: Path) -> None:
        """Read what `save` wrote."""
        self.model.load_state_dict(torch.load(folder / "model.pt", weights_only=True))
        for name, buffer in torch.load(folder / "scales.pt", weights_only=True).items():
            self.get_buffer(name).copy_(buffer)
