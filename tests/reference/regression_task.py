"""A small real task for tests of the loop: regression on points of a fixed function.

A sample has five points, and `present` says which of them count; so micro-batches have unequal counts, as text has.
"""

import itertools
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from featherweight.config import Config
from featherweight.training.task import Batch, Split, Task, Words


class RegressionConfig(Config):
    hidden: int = 16
    dropout: float = 0.0
    samples: int = 24
    double: bool = False
    broken_at: int | None = None
    masked: bool = False
    delay_s: float = 0.0
    is_stream: bool = False


class RegressionTask(Task):
    Config = RegressionConfig
    words = Words("points", "squared error", ("perplexity",))

    def __init__(self, config: RegressionConfig, *, seed: int) -> None:
        self.config, self.seed = config, seed
        self.dtype = torch.float64 if config.double else torch.float32
        generator = torch.Generator().manual_seed(1)
        self.inputs = torch.randn(config.samples, 5, 8, generator=generator, dtype=self.dtype)
        self.targets = torch.sin(self.inputs.sum(-1, keepdim=True))
        lengths = torch.randint(1, 6, (config.samples, 1), generator=generator)
        self.present = torch.arange(5) < lengths
        if config.masked:
            self.present = torch.zeros_like(self.present)

    def build_model(self) -> nn.Module:
        hidden = self.config.hidden
        model = nn.Sequential(
            nn.Linear(8, hidden),
            nn.Tanh(),
            nn.Dropout(self.config.dropout),
            nn.Linear(hidden, hidden),
            nn.Linear(hidden, 1),
        )
        return model.to(self.dtype)

    def train_rows(self) -> int | None:
        return None if self.config.is_stream else self.config.samples

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
        per_epoch = self.config.samples // micro_batch_size
        first = process_rank + start * world_size
        for turn in itertools.count(first, world_size) if split == "train" else range(per_epoch):
            epoch, index = divmod(turn, per_epoch)
            order = torch.arange(self.config.samples)
            if split == "train":
                generator = torch.Generator().manual_seed(1000 * seed + epoch)
                order = torch.randperm(self.config.samples, generator=generator)
            chosen = order[index * micro_batch_size : (index + 1) * micro_batch_size]
            inputs = self.inputs[chosen]
            if split == "train" and turn == self.config.broken_at:
                inputs = inputs * math.nan
            time.sleep(self.config.delay_s)
            yield {"inputs": inputs, "targets": self.targets[chosen], "present": self.present[chosen]}

    def item_count(self, batch: Batch) -> int:
        return int(batch["present"].sum())

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, int]:
        weight = next(model.parameters())
        errors = (model(batch["inputs"].to(weight.dtype)).to(self.dtype) - batch["targets"]).square().squeeze(-1)
        return (errors * batch["present"]).sum(), self.item_count(batch)

    def evaluate(self, model: nn.Module, *, micro_batch_size: int) -> dict[str, float]:
        torch.rand(3)  # an evaluation that draws numbers must not disturb the training
        was_training = model.training
        model.eval()
        with torch.no_grad():
            results = [(*self.loss(model, batch), counts) for batch, counts in self.held_out_share(4)]
        model.train(was_training)
        total, items = (sum(one[place] * one[2] for one in results) for place in (0, 1))
        total, items = self.share.sums(float(total), items)
        mean = total / items
        return {"held_out_loss": mean, "perplexity": math.exp(mean)}

    def save_model(self, model: nn.Module, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(model.state_dict(), folder / "weights.pt")

    def describe(self) -> dict[str, Any]:
        return {"model": "two hidden layers", "samples": self.config.samples}
