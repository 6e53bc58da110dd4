"""Behaviour cloning of the state: a small MLP from features to a chunk of actions.

Shapes: B frames, F features, K actions of a chunk, 6 joints.
"""

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field
from torch import Tensor, nn

from featherweight.robot.kit import SERVOS
from featherweight.robot.learning.policy import Policy, PolicyConfig


class BCConfig(PolicyConfig):
    """Shape of a policy of behaviour cloning."""

    kind: Literal["bc"] = "bc"
    """Behaviour cloning of the state."""
    chunk: int = Field(default=20, ge=1, le=200)
    """Actions of one prediction."""
    hidden: int = Field(default=256, ge=4)
    """Width of the hidden layers."""
    layers: int = Field(default=3, ge=1)
    """Hidden layers."""


class BCPolicy(Policy):
    """An MLP from normalised features to K x 6 angles relative to the state, in degrees.

    Args:
        config: shape.
    """

    config: BCConfig

    def __init__(self, config: BCConfig) -> None:
        super().__init__()
        self.config, self.chunk = config, config.chunk
        widths = [len(config.features), *[config.hidden] * config.layers]
        blocks: list[nn.Module] = []
        for width_in, width_out in zip(widths, widths[1:], strict=False):
            blocks += [nn.Linear(width_in, width_out), nn.GELU()]
        self.network = nn.Sequential(*blocks, nn.Linear(widths[-1], config.chunk * SERVOS))
        self._add_scales()

    def normal_chunks(self, features: Tensor) -> Tensor:
        """Return (B, K, 6) predictions in the units of the network's output, from (B, F) features."""
        normal = self.normal_features(features)
        dtype = next(p.dtype for p in self.network.parameters() if p.is_floating_point())
        result: Tensor = self.network(normal.to(dtype)).to(features.dtype)
        return result.unflatten(-1, (self.chunk, SERVOS))

    def forward(self, features: Tensor) -> Tensor:
        """Return (B, K, 6) degrees relative to the reported angles, from (B, F) features."""
        return self.to_degrees(self.normal_chunks(features))

    def predict(self, batch: Mapping[str, Tensor]) -> Tensor:
        """See `Policy`."""
        result: Tensor = self(batch["features"])
        return result

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> Self:
        """See `Policy`."""
        return cls(BCConfig.parse(options, where="policy.json"))
