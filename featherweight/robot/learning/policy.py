"""What every policy is: it sees the arm and more, and gives a chunk of actions; its file, scales and shape.

Shapes: B frames, F features, K actions of a chunk, 6 joints.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from featherweight.config import Config, write_atomically
from featherweight.config.files import new_file
from featherweight.errors import CheckpointError, ConfigError
from featherweight.registry import Registry
from featherweight.robot.kinematics.dh import Array
from featherweight.robot.kit import JOINT_KEYS, SERVOS
from featherweight.robot.learning.options import policy_folder
from featherweight.robot.learning.state import FEATURE_NAMES, select_features
from featherweight.robot.recording.video import Picture

EPSILON = 1e-6
"""Added to a deviation: a feature that never changes has none."""
FARTHEST = 10.0
"""Deviations from its mean at which a feature ends: one that stood still in all demonstrations may move later."""
LEAST_DEG = 0.1
"""Least deviation of a target: servos know whole degrees, and a joint that rests in all demonstrations has none."""


@dataclass(frozen=True)
class Seen:
    """What an operator sees beside the joints of the arm."""

    scene: Array | None = None
    """(7,) where cube and bin are; see `SCENE_NAMES`. None where only pictures are there."""
    pictures: Mapping[str, Picture] = field(default_factory=dict)
    """Camera -> (H, W, 3)."""


class PolicyConfig(Config):
    """What every policy says of itself."""

    fps: float = 30.0
    """Actions a second."""
    robot: str = "umirobot"
    """Kind of robot whose demonstrations it learnt."""
    actions: list[str] = list(JOINT_KEYS)
    """What it gives, relative to the reported angles."""
    features: list[str] = list(FEATURE_NAMES)
    """Numbers that it sees."""
    cameras: list[str] = []
    """Pictures that it sees."""


class Policy(nn.Module, ABC):
    """A network from what is seen to K x 6 angles relative to the state, in degrees.

    Args:
        config: shape.
    """

    config: PolicyConfig
    chunk: int
    """K."""
    ask_every: int = 1
    """Actions between two predictions."""
    decay: float | None = 0.01
    """Of the ensemble over time; None uses the newest chunk alone."""
    picture_size_px: tuple[int, int] = (0, 0)
    """(height, width) of the pictures that it sees."""

    def _add_scales(self, further: int = 0) -> None:
        for name, shape in (("x", (len(self.config.features) + further,)), ("y", (self.chunk, SERVOS))):
            self.register_buffer(f"{name}_mean", torch.zeros(shape))
            self.register_buffer(f"{name}_std", torch.ones(shape))

    def fit_scales(self, rows: Mapping[str, Tensor]) -> None:
        """Take mean and deviation of (n, F) "features" and (n, K, 6) "targets"."""
        for name, values in (("x", rows["features"]), ("y", rows["targets"])):
            self.get_buffer(f"{name}_mean").copy_(values.mean(dim=0))
            self.get_buffer(f"{name}_std").copy_(values.std(dim=0, unbiased=False) + EPSILON)
        self.get_buffer("y_std").clamp_(min=LEAST_DEG)

    def normal_features(self, features: Tensor) -> Tensor:
        """Return (B, F) features in deviations from their mean, `FARTHEST` at most."""
        normal = (features - self.get_buffer("x_mean")) / self.get_buffer("x_std")
        return normal.clamp(-FARTHEST, FARTHEST)

    def normal_targets(self, targets: Tensor) -> Tensor:
        """Return (B, K, 6) targets in the units of the network's output."""
        return (targets - self.get_buffer("y_mean")) / self.get_buffer("y_std")

    def to_degrees(self, normal: Tensor) -> Tensor:
        """Return (B, K, 6) degrees relative to the reported angles, from the network's output."""
        return normal * self.get_buffer("y_std") + self.get_buffer("y_mean")

    @abstractmethod
    def predict(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Return (B, K, 6) degrees relative to the state, from "features" (B, F) and a "picture.<camera>" for each."""

    @torch.inference_mode()
    def act(self, state_deg: Sequence[float] | Array, seen: Seen) -> Array:
        """Return the (K, 6) absolute degrees that follow one state; the policy is in eval mode afterwards.

        Raises:
            ConfigError: if something that the policy needs is not seen.
        """
        self.eval()
        state = np.asarray(state_deg, dtype=np.float64)
        if seen.scene is None and "cube_x" in self.config.features:
            raise ConfigError("policy: scene=None; expected where cube and bin are. Use a policy of pictures here.")
        features = select_features(self.config.features, state, seen.scene)
        batch = {"features": torch.from_numpy(features.astype(np.float32))[None]}
        for name in self.config.cameras:
            picture = seen.pictures.get(name)
            if picture is None:
                raise ConfigError(
                    f"policy: camera={name} is not there; expected {self.config.cameras}. Give the robot these cameras."
                )
            batch[f"picture.{name}"] = scale_pictures(torch.from_numpy(picture)[None], self.picture_size_px)
        result: Array = self.predict(batch)[0].numpy().astype(np.float64) + state
        return result

    def save(self, folder: Path, facts: dict[str, Any] | None = None) -> None:
        """Write `policy.safetensors` and `policy.json`."""
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        with new_file(folder / "policy.safetensors") as temporary:
            save_file({name: tensor.contiguous() for name, tensor in self.state_dict().items()}, temporary)
        told = {"policy": self.config.to_dict(), **(facts or {})}
        write_atomically(folder / "policy.json", f"{json.dumps(told, indent=2, default=str)}\n")

    @classmethod
    @abstractmethod
    def from_options(cls, options: Mapping[str, Any]) -> Self:
        """Return an untrained policy of the shape that `save` wrote down."""


policies: Registry[type[Policy]] = Registry("policy")
"""Every kind of policy by the word under `kind` in policy.json."""
policies.register("bc", "featherweight.robot.learning.bc:BCPolicy")
policies.register("act", "featherweight.robot.learning.act:ACTPolicy")


def load_policy(folder: str | Path) -> Policy:
    """Read what `Policy.save` wrote; a run folder of `fw train` is fine, too.

    Raises:
        CheckpointError: if there is no policy, or its file is damaged.
        ConfigError: if it is a policy for another robot.
    """
    from safetensors.torch import load_file

    found = policy_folder(folder)
    try:
        options = json.loads((found / "policy.json").read_text())["policy"]
        policy = policies.get(options["kind"]).from_options(options)
        _check_robot(policy.config, folder)
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


def scale_pictures(pictures: Tensor, size_px: tuple[int, int]) -> Tensor:
    """Return (n, 3, H, W) bytes from (n, h, w, 3) bytes; each new pixel is the mean of those that it covers."""
    pictures = pictures.movedim(-1, 1)
    if tuple(pictures.shape[-2:]) == size_px:
        return pictures.contiguous()
    small = nn.functional.interpolate(pictures.float(), size_px, mode="area")
    return small.round().to(torch.uint8)


def _check_robot(config: PolicyConfig, folder: str | Path) -> None:
    strange = [name for name in config.features if name not in FEATURE_NAMES]
    if config.robot != "umirobot" or config.actions != list(JOINT_KEYS):
        raise ConfigError(
            f"policy: robot={config.robot} of {folder} is another kit, with actions {config.actions}; expected "
            f"umirobot with {list(JOINT_KEYS)}. Train a policy on demonstrations of this kit."
        )
    if strange:
        raise ConfigError(
            f"policy: features={strange} of {folder} are unknown here; expected some of {list(FEATURE_NAMES)}. Train "
            "it again."
        )
