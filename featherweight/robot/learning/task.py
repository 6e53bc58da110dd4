"""Behaviour cloning as a task for `fw train`: the next actions of an expert from the state, out of a data set.

Shapes: B frames, F features, K actions of a chunk, 6 joints.
"""

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from featherweight.config import Config
from featherweight.errors import ConfigError
from featherweight.robot.kit import JOINT_KEYS
from featherweight.robot.learning.policy import ChunkPolicy, PolicyConfig
from featherweight.robot.learning.state import state_features
from featherweight.robot.recording.demo_dataset import DemoDataset
from featherweight.robot.recording.demonstrations import SCENE_KEY
from featherweight.robot.sim.session import SCENE_NAMES
from featherweight.training.order import micro_batch_numbers, shuffled_rows
from featherweight.training.task import Batch, Split, Task, Words


class RobotTaskConfig(Config):
    """What stands under `task` in a recipe."""

    data: str
    """Folder of a data set; `fw robot record --leader expert` makes one."""
    chunk: int = Field(default=20, ge=1, le=200)
    """Actions of one prediction."""
    hidden: int = Field(default=256, ge=4)
    """Width of the hidden layers."""
    layers: int = Field(default=3, ge=1)
    """Hidden layers."""
    held_out: float = Field(default=0.1, gt=0, lt=1)
    """Share of the episodes, the last ones, that only measure the loss; at least one."""


class RobotTask(Task):
    """Predict the next K actions relative to the reported angles; the loss is the mean absolute error in deviations.

    Args:
        config: options.
        seed: of the weights.
    Raises:
        ConfigError: if the data set is missing, damaged, or of another robot or scene.
    """

    Config = RobotTaskConfig
    words = Words("frames", "deviations/frame", ("error_deg",))

    def __init__(self, config: RobotTaskConfig, *, seed: int) -> None:
        self.config, self.seed = config, seed
        data = DemoDataset(config.data)
        _check(data)
        if len(data.episodes) < 2:
            raise ConfigError(
                f"robot task: episodes={len(data.episodes)} of {config.data} are too few; expected at least 2. "
                "Record more."
            )
        parts = [_chunks(data.episode(number), config.chunk) for number in range(len(data.episodes))]
        held_out = max(1, round(config.held_out * len(parts)))
        self.fps = float(data.fps)
        self.train, self.held_out = _join(parts[:-held_out]), _join(parts[-held_out:])
        self.episodes = len(parts) - held_out, held_out

    def build_model(self) -> nn.Module:
        """Return the policy in float32 on the CPU, with the scales of the training frames."""
        options = {key: getattr(self.config, key) for key in ("chunk", "hidden", "layers")}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            policy = ChunkPolicy(PolicyConfig(**options, fps=self.fps))
        policy.fit_scales(self.train["features"], self.train["targets"])
        return policy

    def batches(
        self,
        split: Split,
        *,
        micro_batch_size: int,
        seed: int,
        process_rank: int = 0,
        world_size: int = 1,
        start: int = 0,
    ) -> Iterator[dict[str, Tensor]]:
        """Yield {"features": (B, F), "targets": (B, K, 6) degrees, "weights": (B, K)}; see `Task.batches`.

        A weight is 0 where the chunk reaches beyond the episode, else 1.
        """
        turns = micro_batch_numbers(
            micro_batch_size=micro_batch_size,
            process_rank=process_rank,
            world_size=world_size,
            start=start,
            where="robot task",
        )
        rows = self.train if split == "train" else self.held_out
        count = len(rows["features"])
        if split == "train":
            for chosen in shuffled_rows(turns, micro_batch_size=micro_batch_size, row_count=count, seed=seed):
                yield {name: values[chosen] for name, values in rows.items()}
            return
        for turn in itertools.takewhile(lambda turn: turn * micro_batch_size < count, turns):
            part = slice(turn * micro_batch_size, (turn + 1) * micro_batch_size)
            yield {name: values[part] for name, values in rows.items()}

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, int]:
        """Return the sum over frames of the mean absolute error of a chunk, in deviations, and the number of frames."""
        policy = _policy(model)
        error = (policy.normal_chunks(batch["features"]) - policy.normal_targets(batch["targets"])).abs().mean(dim=-1)
        weights = batch["weights"]
        per_frame = (error * weights).sum(dim=-1) / weights.sum(dim=-1)
        return per_frame.float().sum(), len(weights)

    def evaluate(self, model: nn.Module, *, micro_batch_size: int) -> dict[str, float]:
        """Return the loss of the held-out episodes, and the mean error of an action in degrees."""
        was_training, policy = model.training, _policy(model)
        device = next(model.parameters()).device
        total, count, error_deg, weight = 0.0, 0, 0.0, 0.0
        model.eval()
        try:
            with torch.inference_mode():
                for rows, counts in self.held_out_share(micro_batch_size):
                    batch = {name: values.to(device) for name, values in rows.items()}
                    value, items = self.loss(model, batch)
                    if not counts:
                        continue
                    total, count = total + float(value), count + items
                    off = (policy(batch["features"]) - batch["targets"]).abs().mean(dim=-1) * batch["weights"]
                    error_deg, weight = error_deg + float(off.sum()), weight + float(batch["weights"].sum())
        finally:
            model.train(was_training)
        total, frames, error_deg, weight = self.share.sums(total, count, error_deg, weight)
        return {"held_out_loss": total / frames, "error_deg": error_deg / weight}

    def save_model(self, model: nn.Module, folder: Path) -> None:
        """Write `policy.safetensors` and `policy.json`."""
        _policy(model).save(Path(folder), {"task": self.config.to_dict()})

    def describe(self) -> dict[str, object]:
        """Return names and exact counts for the report."""
        return {
            "data": self.config.data,
            "parameters": sum(p.numel() for p in self.build_model().parameters()),
            "train_frames": len(self.train["features"]),
            "held_out_frames": len(self.held_out["features"]),
            "train_episodes": self.episodes[0],
            "held_out_episodes": self.episodes[1],
        }


def _policy(model: nn.Module) -> ChunkPolicy:
    assert isinstance(model, ChunkPolicy)
    return model


def _check(data: DemoDataset) -> None:
    """Refuse a set whose numbers mean something else."""
    wanted = {"action": JOINT_KEYS, "observation.state": JOINT_KEYS, SCENE_KEY: SCENE_NAMES}
    for key, names in wanted.items():
        feature = data.features.get(key)
        if feature is None or list(feature["names"] or []) != list(names):
            found = None if feature is None else feature["names"]
            raise ConfigError(
                f"robot task: {key}={found} of {data.root} are other numbers; expected {list(names)}. Record "
                "demonstrations with fw robot record --leader expert."
            )


def _chunks(episode: dict[str, np.ndarray], chunk: int) -> dict[str, Tensor]:
    """Return features, targets relative to the state, and weights, of every frame of an episode."""
    state, action = episode["observation.state"], episode["action"]
    rows = np.arange(len(action))[:, None] + np.arange(chunk)
    targets = action[np.minimum(rows, len(action) - 1)] - state[:, None, :]
    return {
        "features": torch.from_numpy(state_features(state, episode[SCENE_KEY]).astype(np.float32)),
        "targets": torch.from_numpy(targets.astype(np.float32)),
        "weights": torch.from_numpy((rows < len(action)).astype(np.float32)),
    }


def _join(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
