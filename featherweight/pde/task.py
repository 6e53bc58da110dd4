"""Learning the solution operator of a partial differential equation, as a task for `fw train`.

A `featherweight.training.task.Task`; recipes reach it by `task: {name: pde, ...}`. Losses and metrics are
means over samples of relative errors of fields in physical units.
Shapes: B samples, C channels, s_1 .. s_d points.
"""

import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from featherweight.pde.metrics import ERROR_KINDS, ErrorKind, largest_error, relative_error
from featherweight.pde.network import new_network
from featherweight.pde.operator import FieldOperator
from featherweight.pde.options import PdeConfig
from featherweight.pde.pictures import Shown, draw_runs
from featherweight.pde.problems import PROBLEMS
from featherweight.pde.skeleton import PdeSkeleton
from featherweight.pde.splits import is_periodic, load_splits
from featherweight.training.order import micro_batch_numbers, shuffled_rows
from featherweight.training.task import Batch, Split, Task

_SAMPLES_AT_ONCE = 4
"""Samples that a picture predicts at once: few, since a task does not know how many fit."""


class PdeTask(Task):
    """Predict solutions from inputs.

    Args:
        config: options.
        seed: of the weights.
    Raises:
        ConfigError: if the data cannot be found or do not fit the model.
        MissingExtraError: if the model's package is missing.
    Example:
        >>> options = dict(resolution=16, n_train=8, n_test=4, n_modes=[4, 4], hidden_channels=4)
        >>> task = PdeTask(PdeConfig(**options), seed=0)
        >>> task.describe()["train_samples"], task.describe()["test_sets"]
        (8, {'16': 4})
    """

    Config = PdeConfig

    def __init__(self, config: PdeConfig, *, seed: int) -> None:
        self.config, self.seed = config, seed
        self.words = config.words()
        self.train, self.tests = load_splits(config)
        self.is_periodic = is_periodic(config)

    @classmethod
    def skeleton(cls, config: PdeConfig, *, seed: int, layers: int | None = None) -> PdeSkeleton:
        """Return a task with the shapes of this one, without data and weights; see `Skeleton`."""
        return PdeSkeleton(config, layers=layers)

    def build_model(self) -> nn.Module:
        """Return the operator in float32 on the CPU; random weights follow from the task's seed."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            network = new_network(self.config, self.train.x.shape[1], self.train.y.shape[1])
        return FieldOperator(network, self.train.x, self.train.y)

    def train_rows(self) -> int:
        """Return the rows of one epoch."""
        return len(self.train)

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
        """Yield micro-batches {"x": (B, C, s_1, .., s_d), "y": alike}; see `Task.batches`.

        An epoch visits each training sample once, in an order given by (seed, epoch); "held_out" is the first test set.
        """
        turns = micro_batch_numbers(
            micro_batch_size=micro_batch_size,
            process_rank=process_rank,
            world_size=world_size,
            start=start,
            where="pde task",
        )
        if split == "train":
            for rows in shuffled_rows(turns, micro_batch_size=micro_batch_size, row_count=len(self.train), seed=seed):
                yield {"x": self.train.x[rows], "y": self.train.y[rows]}
            return
        pairs = next(iter(self.tests.values()))
        for turn in itertools.takewhile(lambda turn: turn * micro_batch_size < len(pairs), turns):
            chosen = slice(turn * micro_batch_size, (turn + 1) * micro_batch_size)
            yield {"x": pairs.x[chosen], "y": pairs.y[chosen]}

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, int]:
        """Return the sum over samples of the relative error that `loss` names, and the number of samples."""
        return self._errors(model(batch["x"]), batch["y"], self.config.loss).float().sum(), len(batch["x"])

    def evaluate(self, model: nn.Module, *, micro_batch_size: int) -> dict[str, float]:
        """Return the errors on every test set; the model's mode is left as it was.

        Returns:
            held_out_loss (the training loss on the first test set), l2, h1, h1_periodic and max_error there, and the
            same with the resolution behind (l2_64) for each further one.
        """
        metrics: dict[str, float] = {}
        for index, (name, pairs) in enumerate(self.tests.items()):
            kinds: list[ErrorKind] = [*ERROR_KINDS] if index else [self.config.loss, *ERROR_KINDS]
            sums, largest, parts = [0.0] * len(kinds), 0.0, range(0, len(pairs), micro_batch_size)
            for start, counts in self.share.of(parts):
                x, y = (whole[start : start + micro_batch_size] for whole in (pairs.x, pairs.y))
                prediction = self.predict(model, x, micro_batch_size=micro_batch_size)
                if counts:
                    errors = (float(self._errors(prediction, y, kind).double().sum()) for kind in kinds)
                    sums = [before + more for before, more in zip(sums, errors, strict=True)]
                    largest = max(largest, float(largest_error(prediction, y).max()))
            names = [*ERROR_KINDS] if index else ["held_out_loss", *ERROR_KINDS]
            suffix = f"_{name}" if index else ""
            for kind_name, total in zip(names, self.share.sums(*sums), strict=True):
                metrics[f"{kind_name}{suffix}"] = total / len(pairs)
            metrics[f"max_error{suffix}"] = self.share.largest(largest)
        return metrics

    def predict(self, model: nn.Module, x: Tensor, *, micro_batch_size: int) -> Tensor:
        """Return predictions on the CPU, (n, C', s_1, .., s_d); the model's mode is left as it was."""
        device, was_training = next(model.parameters()).device, model.training
        model.eval()
        try:
            with torch.inference_mode():
                parts = [model(part.to(device)).float().cpu() for part in x.split(micro_batch_size)]
        finally:
            model.train(was_training)
        return torch.cat(parts)

    def save_model(self, model: nn.Module, folder: Path) -> None:
        """Write `model.pt` (neuraloperator's names), `scales.pt` and `config.json`."""
        assert isinstance(model, FieldOperator)
        model.save(Path(folder), {"task": self.config.to_dict(), **self.describe()})

    def describe(self) -> dict[str, object]:
        """Return names and exact counts for the report."""
        model = self.build_model()
        return {
            "data": self.config.data,
            "model": self.config.model,
            "parameters": sum(p.numel() * (2 if p.is_complex() else 1) for p in model.parameters()),
            "train_samples": len(self.train),
            "resolution": self.train.x.shape[-1],
            "test_sets": {name: len(pairs) for name, pairs in self.tests.items()},
            **({"fields": self.train.origin} if self.train.origin else {}),
        }

    def illustrate(self, model: nn.Module, folder: Path) -> list[Path]:
        """Draw fields and spectra of the first test set, channel 0; `fields.pt` keeps what they show."""
        pairs = next(iter(self.tests.values()))
        prediction = self.predict(model, pairs.x, micro_batch_size=_SAMPLES_AT_ONCE)
        shown = Shown.of(pairs.x[:, 0], pairs.y[:, 0], prediction[:, 0])
        shown.save(folder)
        return draw_runs(folder, {"prediction": shown})

    @classmethod
    def illustrate_together(cls, runs: Mapping[str, Path], folder: Path) -> list[Path]:
        """Draw fields and spectra of several runs side by side, from their `fields.pt`."""
        shown = {name: found for name, run in runs.items() if (found := Shown.load(run)) is not None}
        return draw_runs(folder, shown) if shown else []

    @classmethod
    def run_name(cls, config: PdeConfig, name: str) -> str:
        """Return the name with that of the problem, or of the folder or file of the data, which takes the place of
        another problem's.

        Example:
            >>> PdeTask.run_name(PdeConfig(data="navier_stokes"), "darcy")
            'navier_stokes'
            >>> PdeTask.run_name(PdeConfig(data="data/burgers_nu3"), "long")
            'long-burgers_nu3'
        """
        problem = config.data if config.data in PROBLEMS else Path(config.data).stem
        if problem in name:
            return name
        for other in PROBLEMS:
            if other in name:
                return name.replace(other, problem)
        return f"{name}-{problem}" if problem else name

    def _errors(self, prediction: Tensor, truth: Tensor, kind: ErrorKind) -> Tensor:
        return relative_error(prediction, truth, kind, periodic=self.is_periodic)
