"""Segmentation of the ground as a task: frames of a data set in nuScenes' format to maps of classes.

A `featherweight.training.task.Task`; recipes reach it by `task: {name: bev, ...}`. The same folder format holds the
real download and what `fw bev synth` draws. An item is a frame.
"""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from featherweight.bev.augmentation import displaced, mirrored, recolored, tilted, zoomed
from featherweight.bev.average import average_of, averaged, keep_average
from featherweight.bev.breakdown import Breakdown
from featherweight.bev.data.frames import Frame
from featherweight.bev.data.sources import open_source
from featherweight.bev.illustration import illustrate, spread, together
from featherweight.bev.image_processing_focusbev import FocusBEVImageProcessor
from featherweight.bev.metrics import BEVConfusion, protocol
from featherweight.bev.model.configuration_focusbev import FocusBEVConfig
from featherweight.bev.model.modeling_focusbev import FocusBEVForSegmentation
from featherweight.bev.options import BEVConfig, continued_model_config, new_model_config
from featherweight.bev.samples import Sample, Samples, batch_of, memory_of, seen_with_past
from featherweight.bev.skeleton import BEVSkeleton
from featherweight.bev.step import forward
from featherweight.errors import ConfigError
from featherweight.training.order import micro_batch_numbers, shuffled_rows
from featherweight.training.task import Batch, Split, Task, Words
from featherweight.unwrap import unwrap_model


class BEVTask(Task):
    """Learn maps of the ground from single calibrated pictures, with or without a memory.

    Args:
        config: options.
        seed: of the weights.
    Raises:
        ConfigError: if the data cannot be found, or a part of the split has no drive in them.
    """

    Config = BEVConfig
    words = Words("frames", "loss/frame", ("miou",))

    def __init__(self, config: BEVConfig, *, seed: int) -> None:
        self.config, self.seed = config, seed
        self.source = open_source(config.data, config.version, config.cameras)
        self.split = config.split or self.source.splits[0]
        if self.split not in self.source.splits:
            raise ConfigError(
                f"bev task: split='{self.split}' is none of this data set; expected {' or '.join(self.source.splits)}. "
                "Choose one, or none."
            )
        frames = {part: self._frames(part) for part in ("train", "val")}
        if config.limit_sequences:
            names = sorted({frame.sequence for frame in frames["train"]})[: config.limit_sequences]
            frames["train"] = [frame for frame in frames["train"] if frame.sequence in names]
        self.sequences = {part: sorted({frame.sequence for frame in chosen}) for part, chosen in frames.items()}
        self.model_config = self._model_config()
        self.processor = FocusBEVImageProcessor(self.model_config.image_size)
        self.samples = {part: self._samples(chosen) for part, chosen in frames.items()}

    @classmethod
    def skeleton(cls, config: BEVConfig, *, seed: int, layers: int | None = None) -> BEVSkeleton:
        """Return a task with the shapes of this one, without data and weights; see `Skeleton`."""
        return BEVSkeleton(config)

    @classmethod
    def is_pretrained(cls, config: BEVConfig) -> bool:
        """Tell whether a checkpoint is gone on with."""
        return config.checkpoint is not None

    def _frames(self, part: str) -> list[Frame]:
        config = self.config
        wanted = self.source.sequences(self.split, part)
        chosen = [frame for frame in self.source.frames if frame.sequence in wanted]
        if not chosen:
            raise ConfigError(
                f"bev task: data='{config.data}' has no drive of the {part} part of split='{self.split}'; expected "
                "at least one. Draw or unpack more drives, or choose the other split."
            )
        return chosen

    def _model_config(self) -> FocusBEVConfig:
        config = self.config
        if config.checkpoint:
            kept = continued_model_config(config)
            if kept.classes != self.source.classes.name:
                raise ConfigError(
                    f"bev task: data='{config.data}' has the classes {self.source.classes.name}, but the checkpoint "
                    f"was trained with {kept.classes}; expected the same. Train a network with these data."
                )
            if kept.label_mode != config.label_mode:
                raise ConfigError(
                    f"bev task: label_mode='{config.label_mode}', but the checkpoint was trained with "
                    f"'{kept.label_mode}'; expected the same. Labels of the two modes differ by up to half of their "
                    "cells."
                )
            kept.trained_sequences = sorted({*kept.trained_sequences, *self.sequences["train"]})
            return kept
        return new_model_config(config, self.sequences["train"], self.source.classes.name)

    def _samples(self, frames: Sequence[Frame]) -> Samples:
        model = self.model_config
        return Samples(
            self.source,
            frames,
            self.processor,
            model.bev_grid,
            model.feature_grid,
            self.config.label_mode,
            lidar_mask=self.config.lidar_mask,
        )

    def build_model(self) -> nn.Module:
        """Return the network in float32 on the CPU; random weights follow from the task's seed."""
        if self.config.checkpoint:
            return FocusBEVForSegmentation.from_pretrained(self.config.checkpoint, config=self.model_config).train()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return FocusBEVForSegmentation(self.model_config).train()

    def prepare(self, model: nn.Module) -> None:
        """Begin the average of the weights, if one is asked for."""
        if self.config.ema is not None:
            keep_average(unwrap_model(model), self.config.ema)

    def after_step(self, model: nn.Module) -> None:
        """Take the step into the average of the weights."""
        if (average := average_of(unwrap_model(model))) is not None:
            average.update_(unwrap_model(model))

    def train_rows(self) -> int:
        """Return the frames of one epoch."""
        return len(self.samples["train"])

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
        """Yield micro-batches of pixels, cameras, labels, and past frames where there is a memory; see `Task.batches`.

        An epoch visits each frame once, in an order given by (seed, epoch); how it is mirrored, tilted and coloured
        follows from (seed, number of the micro-batch). "held_out" is every frame of the judging drives, unchanged.
        """
        turns = micro_batch_numbers(
            micro_batch_size=micro_batch_size,
            process_rank=process_rank,
            world_size=world_size,
            start=start,
            where="bev task",
        )
        if split == "train":
            first, second = itertools.tee(turns)
            rows_of = shuffled_rows(
                second, micro_batch_size=micro_batch_size, row_count=len(self.samples["train"]), seed=seed
            )
            for turn, rows in zip(first, rows_of, strict=True):
                yield self._batch("train", rows, np.random.default_rng([seed, turn, 7]))
            return
        count = len(self.samples["val"])
        for turn in itertools.takewhile(lambda turn: turn * micro_batch_size < count, turns):
            yield self._batch("val", range(turn * micro_batch_size, min((turn + 1) * micro_batch_size, count)), None)

    def _batch(self, part: str, rows: Sequence[int], random: np.random.Generator | None) -> dict[str, Tensor]:
        samples, length, grid = self.samples[part], self.model_config.memory_length, self.model_config.bev_grid
        present, past = [], []
        for row in rows:
            change = self._changes(random)
            present.append(change(samples[row]))
            drop = random is not None and random.uniform() < self.config.memory_dropout
            earlier = [] if drop or not length else [change(samples[before]) for before in samples.past(row, length)]
            if random is not None and earlier and random.uniform() < self.config.pose_noise:
                earlier = [displaced(sample, random) for sample in earlier]
            past.append(earlier)
        batch = batch_of(present)
        if length:
            batch |= memory_of(present, past, length, grid)
            if self._past_counts:
                seen = [seen_with_past(now, earlier, grid) for now, earlier in zip(present, past, strict=True)]
                batch["seen"] = torch.from_numpy(np.stack(seen))
        return batch

    @property
    def _past_counts(self) -> bool:
        """Whether cells that past frames alone have seen teach and are judged."""
        return self.model_config.memory_length > 0 and self.config.supervise_memory

    def _changes(self, random: np.random.Generator | None):  # type: ignore[no-untyped-def]
        """Return a change that the frames of one sample share, drawn once."""
        if random is None:
            return lambda sample: sample
        config, grid = self.config, self.model_config.bev_grid
        is_mirrored = random.uniform() < config.flip
        zoom = math.exp(random.uniform(-1, 1) * math.log1p(config.zoom_jitter))
        low, high = 1 - config.color_jitter, 1 + config.color_jitter
        brightness, contrast = random.uniform(low, high), random.uniform(low, high)

        def change(sample: Sample) -> Sample:
            if config.pitch_jitter_deg:
                pitch, roll = np.deg2rad(config.pitch_jitter_deg) * random.standard_normal(2) * (1.0, 0.5)
                sample = tilted(sample, float(pitch), float(roll))
            if config.zoom_jitter:
                sample = zoomed(sample, zoom, grid, self.model_config.feature_grid)
            if config.color_jitter:
                sample = recolored(sample, brightness, contrast)
            return mirrored(sample, grid) if is_mirrored else sample

        return change

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, int]:
        """Return the weighted sum of the terms, times the frames, and the number of frames."""
        output = forward(model, batch, self.config.loss)
        assert output.loss is not None
        return output.loss.float() * len(batch["pixels"]), len(batch["pixels"])

    def evaluate(self, model: nn.Module, *, micro_batch_size: int) -> dict[str, float]:
        """Return held_out_loss, miou and the IoU of each class that exists, over all held-out frames."""
        scores, loss_sum = self.judge(model, micro_batch_size=micro_batch_size)
        metrics = {"held_out_loss": loss_sum / scores.frames, "miou": scores.mean_iou()}
        return metrics | {f"iou_{name}": value for name, value in scores.iou().items()}

    def judge(
        self, model: nn.Module, *, micro_batch_size: int, breakdown: Breakdown | None = None
    ) -> tuple[BEVConfusion, float]:
        """Return the counts over all held-out frames and the sum of their losses; the model's mode is left alone.

        Args:
            model: to judge.
            micro_batch_size: frames at once.
            breakdown: counts the same frames in further ways; where one process judges all of them.
        """
        scores = BEVConfusion(self.source.classes.names, self.model_config.bev_grid)
        device, was_training, loss_sum = next(model.parameters()).device, model.training, 0.0
        model.eval()
        try:
            with averaged(unwrap_model(model)), torch.inference_mode():
                for batch, counts in self.held_out_share(micro_batch_size):
                    moved = {name: value.to(device) for name, value in batch.items()}
                    output = forward(model, moved, self.config.loss)
                    assert output.loss is not None and output.logits is not None
                    if counts:
                        loss_sum += float(output.loss) * len(batch["pixels"])
                        scores.update(output.logits, moved["labels"], moved["seen"])
                        if breakdown is not None:
                            breakdown.update(output.logits, moved["labels"], moved["seen"])
        finally:
            model.train(was_training)
        frames, loss_sum = self.share.sums(scores.frames, loss_sum)
        scores.frames, scores.counts = int(frames), self.share.sum(scores.counts)
        return scores, loss_sum

    def save_model(self, model: nn.Module, folder: Path) -> None:
        """Write config.json, model.safetensors and preprocessor_config.json; averaged weights, if there are any."""
        assert isinstance(model, FocusBEVForSegmentation)
        with averaged(model):
            model.save_pretrained(folder)
        self.processor.save_pretrained(folder)

    def illustrate(self, model: nn.Module, folder: Path) -> list[Path]:
        """Draw three held-out frames: camera, map, truth and errors, as held_out.png."""
        assert isinstance(model, FocusBEVForSegmentation)
        samples, was_training = self.samples["val"], model.training
        model.eval()
        try:
            with averaged(model):
                chosen = [samples[number] for number in spread(len(samples), 3)]
                picture = illustrate(model, chosen, self.source.classes.names)
        finally:
            model.train(was_training)
        picture.save(folder / "held_out.png")
        return [folder / "held_out.png"]

    @classmethod
    def illustrate_together(cls, runs: Mapping[str, Path], folder: Path) -> list[Path]:
        """Put the sheets of several runs below one another, as held_out.png; runs without one are left out."""
        drawn = {name: run for name, run in runs.items() if (run / "held_out.png").is_file()}
        if not drawn:
            return []
        together(drawn, "held_out.png").save(folder / "held_out.png")
        return [folder / "held_out.png"]

    def describe(self) -> dict[str, object]:
        """Return names and exact counts for the report."""
        config, model = self.config, self.model_config
        return {
            "data": config.data,
            "preset": config.preset,
            "view_transform": model.view_transform,
            "parameters": sum(parameter.numel() for parameter in self.build_model().parameters()),
            "train_frames": len(self.samples["train"]),
            "train_drives": len(self.sequences["train"]),
            "held_out_frames": len(self.samples["val"]),
            "held_out_drives": len(self.sequences["val"]),
            "protocol": self.protocol(),
        }

    def protocol(self) -> str:
        """Return the line that says what the scores mean."""
        config, model = self.config, self.model_config
        return protocol(
            self.source.classes.name,
            model.bev_grid,
            len({frame.camera for frame in self.samples["val"].frames}),
            config.label_mode,
            lidar_mask=config.lidar_mask,
            split=self.split,
            past_mask=self._past_counts,
        )
