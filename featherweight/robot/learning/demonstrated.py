"""What tasks on demonstrations share: frames out of a data set, their order, and how well a policy does on those kept
back.

Shapes: B frames, F features, K actions of a chunk, 6 joints.
"""

import itertools
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from featherweight.errors import ConfigError, did_you_mean
from featherweight.robot.kit import JOINT_KEYS
from featherweight.robot.learning.eyes import PLACE_COLUMNS
from featherweight.robot.learning.options import DemonstratedConfig
from featherweight.robot.learning.policy import Policy, load_policy, scale_pictures
from featherweight.robot.learning.state import FEATURE_NAMES, PROPRIOCEPTION, select_features
from featherweight.robot.recording import layout
from featherweight.robot.recording.demo_dataset import DemoDataset
from featherweight.robot.recording.demonstrations import SCENE_KEY
from featherweight.robot.sim.session import SCENE_NAMES
from featherweight.training.order import micro_batch_numbers, shuffled_rows
from featherweight.training.task import Split, Task, Words


class DemonstratedTask(Task):
    """Predict the next K actions relative to the reported angles; the loss is the mean absolute error in deviations.

    Raises:
        ConfigError: if the data set is missing, damaged, or of another robot or scene.
    """

    words = Words("frames", "deviations/frame", ("error_deg",))
    config: DemonstratedConfig
    seed: int

    def _read(self, chunk: int, cameras: Sequence[str], size_px: tuple[int, int], needs_places: bool = False) -> None:
        """Read the data set; called once, by the constructor. With `needs_places` rows tell where cube and bin are."""
        config = self.config
        data = DemoDataset(config.data)
        count = len(data.episodes) if config.episodes is None else min(config.episodes, len(data.episodes))
        self.features = list(PROPRIOCEPTION if cameras else FEATURE_NAMES)
        check_demonstrations(data, cameras, needs_scene=not cameras or needs_places)
        if count < 2:
            raise ConfigError(
                f"robot task: episodes={count} of {config.data} are too few; expected at least 2. Record more."
            )
        held_out = max(1, round(config.held_out * count))
        self.fps, self.episodes = float(data.fps), (count - held_out, held_out)
        bounds = range(count - held_out), range(count - held_out, count)
        self.train, self.held_out = (self._rows(data, part, chunk, cameras, size_px, needs_places) for part in bounds)

    def _rows(
        self,
        data: DemoDataset,
        numbers: range,
        chunk: int,
        cameras: Sequence[str],
        size_px: tuple[int, int],
        needs_places: bool,
    ) -> dict[str, Tensor]:
        parts = [_chunks(data.episode(number), chunk, self.features) for number in numbers]
        rows = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        if needs_places:
            scenes = np.concatenate([data.episode(number)[SCENE_KEY] for number in numbers])
            rows["places"] = torch.from_numpy(scenes[:, PLACE_COLUMNS].astype(np.float32))
        for name in cameras:
            # Filled in place: pictures are most of what a task holds, and are never there twice.
            pictures, start = torch.empty((len(rows["features"]), 3, *size_px), dtype=torch.uint8), 0
            for number in numbers:
                found = scale_pictures(torch.from_numpy(data.pictures(layout.camera_key(name), number)), size_px)
                pictures[start : start + len(found)] = found
                start += len(found)
            rows[f"picture.{name}"] = pictures
        return rows

    @classmethod
    def is_pretrained(cls, config: Any) -> bool:
        """See `Task`."""
        return config.start_from is not None

    @abstractmethod
    def new_policy(self) -> Policy:
        """Return the policy with new weights."""

    def build_model(self) -> nn.Module:
        """Return the policy in float32 on the CPU, with the scales of the training frames, or of where it starts."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            policy = self.new_policy()
        if self.config.start_from is None:
            policy.fit_scales(self.train)
            return policy
        start = load_policy(self.config.start_from)
        shapes = [{name: tuple(t.shape) for name, t in one.state_dict().items()} for one in (policy, start)]
        if shapes[0] != shapes[1]:
            raise ConfigError(
                f"robot task: start_from={self.config.start_from} is a policy of another shape; expected that of this "
                "task. Take the options of its recipe.yaml."
            )
        policy.load_state_dict(start.state_dict())
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

        A weight is 0 where the chunk reaches beyond the episode, else 1. With cameras each has a "picture.<camera>"
        (B, 3, H, W) of bytes, and "places" (B, 4) metres where a policy learns them.
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

    def evaluate(self, model: nn.Module, *, micro_batch_size: int) -> dict[str, float]:
        """Return the loss of the held-out episodes, and the mean error of an action in degrees."""
        was_training, policy = model.training, as_policy(model)
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
                    off = (policy.predict(batch) - batch["targets"]).abs().mean(dim=-1) * batch["weights"]
                    error_deg, weight = error_deg + float(off.sum()), weight + float(batch["weights"].sum())
        finally:
            model.train(was_training)
        total, frames, error_deg, weight = self.share.sums(total, count, error_deg, weight)
        return {"held_out_loss": total / frames, "error_deg": error_deg / weight}

    def save_model(self, model: nn.Module, folder: Path) -> None:
        """Write `policy.safetensors` and `policy.json`."""
        as_policy(model).save(Path(folder), {"task": self.config.to_dict()})

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


def chunk_errors(normal: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Return (B,) mean absolute errors of chunks over the actions that count.

    Args:
        normal: (B, K, 6) predictions.
        targets: (B, K, 6), in the same units.
        weights: (B, K).
    """
    error = (normal - targets).abs().mean(dim=-1)
    return (error * weights).sum(dim=-1) / weights.sum(dim=-1)


def as_policy(model: nn.Module) -> Policy:
    """Return the model as what it is."""
    assert isinstance(model, Policy)
    return model


def check_demonstrations(data: DemoDataset, cameras: Sequence[str] = (), needs_scene: bool = True) -> None:
    """Refuse a set whose numbers mean something else, or that lacks a camera.

    Raises:
        ConfigError: with what is different.
    """
    kind = data.info.get("robot_type")
    if kind != "umirobot":
        raise ConfigError(
            f"robot task: robot_type={kind} of {data.root} is another robot; expected umirobot. Record demonstrations "
            "of this arm with fw robot record."
        )
    wanted = {"action": JOINT_KEYS, "observation.state": JOINT_KEYS}
    for key, names in ({**wanted, SCENE_KEY: SCENE_NAMES} if needs_scene else wanted).items():
        feature = data.features.get(key)
        if feature is None or list(feature["names"] or []) != list(names):
            found = None if feature is None else feature["names"]
            raise ConfigError(
                f"robot task: {key}={found} of {data.root} are other numbers; expected {list(names)}. Record "
                "demonstrations with fw robot record --leader expert."
            )
    there = [key.removeprefix(layout.camera_key("")) for key in layout.video_keys(data.features)]
    for name in cameras:
        if name not in there:
            raise ConfigError(
                f"robot task: camera={name} of {data.root} is not there; expected one of {there}. "
                f"{did_you_mean(name, there) if there else 'Record with --camera.'}"
            )


def _chunks(episode: dict[str, np.ndarray], chunk: int, features: Sequence[str]) -> dict[str, Tensor]:
    """Return features, targets relative to the state, and weights, of every frame of an episode."""
    state, action = episode["observation.state"], episode["action"]
    rows = np.arange(len(action))[:, None] + np.arange(chunk)
    targets = action[np.minimum(rows, len(action) - 1)] - state[:, None, :]
    seen: Any = select_features(features, state, episode.get(SCENE_KEY))
    return {
        "features": torch.from_numpy(seen.astype(np.float32)),
        "targets": torch.from_numpy(targets.astype(np.float32)),
        "weights": torch.from_numpy((rows < len(action)).astype(np.float32)),
    }
