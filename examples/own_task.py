"""A task of your own: fw train recipe.yaml --import examples/own_task.py task=parabola

A small network learns y = x^2.
"""

from pathlib import Path

import torch
from safetensors.torch import save_model
from torch import nn

import featherweight as fw
from featherweight.config import Config
from featherweight.training import Task, Words, tasks
from featherweight.training.order import micro_batch_numbers, shuffled_rows


class ParabolaConfig(Config):
    """What stands beside `name` under the recipe's key `task`."""

    points: int = 256
    """Training points."""


class Parabola(Task):
    """Points of a parabola."""

    Config = ParabolaConfig
    words = Words("points", "squared error", ())

    def __init__(self, config, *, seed):
        self.config, self.seed = config, seed
        self.x = {
            "train": torch.linspace(-1, 1, config.points)[:, None],
            "held_out": torch.linspace(-1, 1, 33)[:, None],
        }

    def build_model(self):
        """Return the network in float32."""
        torch.manual_seed(self.seed)
        return nn.Sequential(nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 1))

    def train_rows(self):
        """Return the points of an epoch."""
        return len(self.x["train"])

    def batches(self, split, *, micro_batch_size, seed, process_rank=0, world_size=1, start=0):
        """Yield points, shuffled anew in every epoch."""
        x, options = self.x[split], {"process_rank": process_rank, "world_size": world_size, "start": start}
        if split == "held_out":
            return ({"x": part} for part in x.split(micro_batch_size)[process_rank + start * world_size :: world_size])
        numbers = micro_batch_numbers(micro_batch_size=micro_batch_size, where="parabola", **options)
        orders = shuffled_rows(numbers, micro_batch_size=micro_batch_size, row_count=len(x), seed=seed)
        return ({"x": x[rows]} for rows in orders)

    def loss(self, model, batch):
        """Return the sum of the squared errors, and the points."""
        return (model(batch["x"]) - batch["x"].square()).square().sum(), len(batch["x"])

    @torch.no_grad()
    def evaluate(self, model, *, micro_batch_size):
        """Return the mean squared error between the training points."""
        return {"held_out_loss": float(self.loss(model, {"x": self.x["held_out"]})[0]) / 33}

    def save_model(self, model, folder: Path):
        """Write the weights."""
        folder.mkdir(parents=True, exist_ok=True)
        save_model(model, str(folder / "model.safetensors"))

    def describe(self):
        """Return what stands in the report."""
        return {"points": self.config.points}


tasks.register("parabola", Parabola)

if __name__ == "__main__":
    recipe = {"task": "parabola", "optimizer": {"name": "adamw", "lr": 1e-2}, "epochs": 4, "micro_batch_size": 32}
    print(fw.train(recipe, callbacks=[]).report)
