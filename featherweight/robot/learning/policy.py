"""Behaviour cloning: a network from the features of a state to a chunk of actions.

Shapes: B states, F features, K actions of a chunk, 6 joints.
"""

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from featherweight.config import Config, write_atomically
from featherweight.config.files import new_file
from featherweight.errors import CheckpointError, ConfigError
from featherweight.robot.kit import JOINT_KEYS, SERVOS
from featherweight.robot.learning.state import FEATURE_NAMES

EPSILON = 1e-6
"""Added to a deviation: a joint that never moves has none."""


class PolicyConfig(Config):
    """Shape of a policy."""

    kind: Literal["bc"] = "bc"
    """Behaviour cloning of the state."""
    chunk: int = Field(default=20, ge=1, le=200)
    """Actions of one prediction."""
    hidden: int = Field(default=256, ge=4)
    """Width of the hidden layers."""
    layers: int = Field(default=3, ge=1)
    """Hidden layers."""
    fps: float = Field(default=30.0, gt=0)
    """Actions a second."""
    robot: str = "umirobot"
    """Kind of robot whose demonstrations it learnt."""
    features: list[str] = list(FEATURE_NAMES)
    """What it sees."""
    actions: list[str] = list(JOINT_KEYS)
    """What it gives, relative to the reported angles."""


class ChunkPolicy(nn.Module):
    """An MLP from normalised features to K x 6 angles relative to the state, in degrees.

    Args:
        config: shape.
    """

    def __init__(self, config: PolicyConfig) -> None:
        super().__init__()
        self.config = config
        widths = [len(config.features), *[config.hidden] * config.layers]
        blocks: list[nn.Module] = []
        for width_in, width_out in zip(widths, widths[1:], strict=False):
            blocks += [nn.Linear(width_in, width_out), nn.GELU()]
        self.network = nn.Sequential(*blocks, nn.Linear(widths[-1], config.chunk * SERVOS))
        for name, shape in (("x", (len(config.features),)), ("y", (config.chunk, SERVOS))):
            self.register_buffer(f"{name}_mean", torch.zeros(shape))
            self.register_buffer(f"{name}_std", torch.ones(shape))

    def fit_scales(self, features: Tensor, targets: Tensor) -> None:
        """Take mean and deviation of (n, F) features and (n, K, 6) targets."""
        for name, values in (("x", features), ("y", targets)):
            self.get_buffer(f"{name}_mean").copy_(values.mean(dim=0))
            self.get_buffer(f"{name}_std").copy_(values.std(dim=0, unbiased=False) + EPSILON)

    def normal_targets(self, targets: Tensor) -> Tensor:
        """Return (B, K, 6) targets in the units of the network's output."""
        return (targets - self.get_buffer("y_mean")) / self.get_buffer("y_std")

    def normal_chunks(self, features: Tensor) -> Tensor:
        """Return (B, K, 6) predictions in the units of the network's output, from (B, F) features."""
        normal = (features - self.get_buffer("x_mean")) / self.get_buffer("x_std")
        dtype = next(p.dtype for p in self.network.parameters() if p.is_floating_point())
        result: Tensor = self.network(normal.to(dtype)).to(features.dtype)
        return result.unflatten(-1, (self.config.chunk, SERVOS))

    def forward(self, features: Tensor) -> Tensor:
        """Return (B, K, 6) degrees relative to the reported angles, from (B, F) features."""
        return self.normal_chunks(features) * self.get_buffer("y_std") + self.get_buffer("y_mean")

    @torch.inference_mode()
    def act(self, features: np.ndarray, state_deg: np.ndarray) -> np.ndarray:
        """Return the (K, 6) absolute degrees that follow one state; the policy is in eval mode afterwards."""
        self.eval()
        chunk = self(torch.from_numpy(np.asarray(features, dtype=np.float32))[None])[0]
        return chunk.numpy().astype(np.float64) + np.asarray(state_deg)

    def save(self, folder: Path, facts: dict[str, Any] | None = None) -> None:
        """Write `policy.safetensors` and `policy.json`."""
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        with new_file(folder / "policy.safetensors") as temporary:
            save_file({name: tensor.contiguous() for name, tensor in self.state_dict().items()}, temporary)
        told = {"policy": self.config.to_dict(), **(facts or {})}
        write_atomically(folder / "policy.json", f"{json.dumps(told, indent=2, default=str)}\n")

    @classmethod
    def load(cls, folder: str | Path) -> "ChunkPolicy":
        """Read what `save` wrote; a run folder of `fw train` is fine, too.

        Raises:
            CheckpointError: if there is no policy, or its file is damaged.
            ConfigError: if it is a policy for another robot.
        """
        from safetensors.torch import load_file

        places = [Path(folder), Path(folder) / "model"]
        found = next((place for place in places if (place / "policy.json").exists()), None)
        if found is None:
            raise CheckpointError(
                f"policy: folder={folder} holds no policy.json; expected a trained policy. Train one with "
                "fw robot train."
            )
        try:
            config = PolicyConfig.parse(json.loads((found / "policy.json").read_text())["policy"], where="policy.json")
            _check_robot(config, folder)
            policy = cls(config)
            policy.load_state_dict(load_file(found / "policy.safetensors"))
        except ConfigError:
            raise
        except Exception as error:  # safetensors and torch raise many kinds
            reason = " ".join(str(error).split())[:200]
            raise CheckpointError(
                f"policy: folder={found} cannot be read ({reason}); expected policy.json and policy.safetensors of "
                "one policy. Train it again."
            ) from error
        return policy.eval()


def _check_robot(config: PolicyConfig, folder: str | Path) -> None:
    if config.robot != "umirobot" or config.actions != list(JOINT_KEYS) or config.features != list(FEATURE_NAMES):
        raise ConfigError(
            f"policy: robot={config.robot} of {folder} is another kit, with actions {config.actions}; expected "
            f"umirobot with {list(JOINT_KEYS)}. Train a policy on demonstrations of this kit."
        )
