"""Learning the solution operator of a partial differential equation, as a task for `fw train`.

A `featherweight.training.task.Task`; recipes reach it by `task: {name: pde, ...}`. Losses and metrics are
means over samples of relative errors of fields in physical units.
Shapes: B samples, C channels, s_1 .. s_d points.
"""

import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from featherweight.config import Config
from featherweight.errors import ConfigError, MissingExtraError
from featherweight.pde.files import FieldPairs, read_pairs
from featherweight.pde.fno import FNO
from featherweight.pde.generation import sample_pairs
from featherweight.pde.metrics import largest_error, relative_h1, relative_l2
from featherweight.pde.operator import FieldOperator
from featherweight.pde.pictures import Shown, draw_runs
from featherweight.pde.problems import PROBLEMS
from featherweight.training.order import micro_batch_numbers, shuffled_rows
from featherweight.training.task import Batch, Split, Task, Words


class PdeConfig(Config):
    """Options of the task."""

    data: str = "darcy"
    """A folder of `fw pde generate`, a file of training pairs, or the name of a problem (darcy, burgers,
    navier_stokes), whose samples are then generated at the start."""
    test_data: list[str] = []
    """Files to test on; the first one counts for `held_out_loss`, others at another resolution test the transfer to it.
    Empty: the folder's test files, or the last tenth of the training file."""
    resolution: int | None = Field(default=None, ge=4)
    """Of a folder with several, or of generated samples; None takes the only one, or the problem's default."""
    problem_options: dict[str, Any] = {}
    """Options of a generated problem, such as viscosity."""
    data_seed: int = Field(default=0, ge=0)
    """Seed of generated samples; apart from the run's seed, so that runs with different seeds see the same data."""
    n_train: int | None = Field(default=None, ge=1)
    """Training samples; None takes all (1000 if generated)."""
    n_test: int | None = Field(default=None, ge=1)
    """Test samples; None takes all (200 if generated)."""
    x_key: str | None = None
    """Name of the inputs in the files; None tries the usual ones."""
    y_key: str | None = None
    """Name of the solutions in the files; None tries the usual ones."""
    x_index: int | None = None
    """Which of several stored times of the inputs; None takes all, of one array over time the first."""
    y_index: int | None = None
    """Which of several stored times of the solutions; None takes all, of one array over time the last."""
    x_axes: str | None = None
    """Axes of the stored inputs, one letter each: n samples, c channels, t times, x y z points. None: known from the
    file's coordinates or from its shapes; where these leave a doubt, the file is refused."""
    y_axes: str | None = None
    """Axes of the stored solutions, alike."""
    periodic: bool | None = None
    """Whether fields wrap around, for the derivatives of the H1 error; None: not if the folder or the training file has
    darcy in its name."""
    model: Literal["fno", "neuraloperator"] = "fno"
    """Our own network, or that of the package neuraloperator."""
    n_modes: list[int] = [16, 16]
    """SavedEarly Fourier modes an axis, both signs counted."""
    hidden_channels: int = Field(default=32, ge=1)
    """Width."""
    n_layers: int = Field(default=4, ge=1)
    """Fourier layers."""
    projection_channel_ratio: float = Field(default=2, gt=0)
    """Hidden width of the projection, over the width."""
    domain_padding: float = Field(default=0.0, ge=0, lt=1)
    """Share of each axis added behind the field, for problems that are not periodic."""
    loss: Literal["h1", "h1_periodic", "l2"] = "h1"
    """Training loss, a relative error; h1_periodic takes derivatives around the boundary, as published runs do."""


_SAMPLES_AT_ONCE = 4
"""Samples that a picture predicts at once: few, since a task does not know how many fit."""

LOSS_WORDS = {"l2": "relative L2 error", "h1": "relative H1 error", "h1_periodic": "relative H1 error, periodic"}


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
        self.words = Words("samples", LOSS_WORDS[config.loss], ("l2",) if config.loss != "l2" else ("h1",))
        train, self.tests = _load(config)
        self.train = _with_channels(train, len(config.n_modes))
        self.tests = {name: _with_channels(pairs, len(config.n_modes)) for name, pairs in self.tests.items()}
        _require_same_channels(self.train, self.tests)
        self.is_periodic = _is_periodic(config)

    def build_model(self) -> nn.Module:
        """Return the operator in float32 on the CPU; random weights follow from the task's seed."""
        config = self.config
        options: dict[str, Any] = {
            "n_modes": tuple(config.n_modes),
            "in_channels": self.train.x.shape[1],
            "out_channels": self.train.y.shape[1],
            "hidden_channels": config.hidden_channels,
            "n_layers": config.n_layers,
            "projection_channel_ratio": config.projection_channel_ratio,
        }
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            if config.model == "fno":
                network: nn.Module = FNO(**options, domain_padding=config.domain_padding)
            else:
                network = _neuraloperator_fno(options, config.domain_padding)
        return FieldOperator(network, self.train.x, self.train.y)

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
            prediction = self.predict(model, pairs.x, micro_batch_size=micro_batch_size)
            suffix = "" if index == 0 else f"_{name}"
            if index == 0:
                metrics["held_out_loss"] = float(self._errors(prediction, pairs.y, self.config.loss).mean())
            for kind in ("l2", "h1", "h1_periodic"):
                metrics[f"{kind}{suffix}"] = float(self._errors(prediction, pairs.y, kind).mean())
            metrics[f"max_error{suffix}"] = float(largest_error(prediction, pairs.y).max())
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

    def _errors(self, prediction: Tensor, truth: Tensor, kind: str) -> Tensor:
        if kind == "l2":
            return relative_l2(prediction, truth)
        return relative_h1(prediction, truth, periodic=self.is_periodic or kind == "h1_periodic")


def _load(config: PdeConfig) -> tuple[FieldPairs, dict[str, FieldPairs]]:
    """Return the training pairs, and the test pairs by resolution; the first counts."""
    if config.data in PROBLEMS:
        return _generated(config)
    train_file, test_files = _find_files(config)
    options = {key: getattr(config, key) for key in ("x_key", "y_key", "x_index", "y_index", "x_axes", "y_axes")}
    train, *tests = (read_pairs(path, **options, dimensions=len(config.n_modes)) for path in (train_file, *test_files))
    if not tests:
        cut = max(1, len(train) // 10)
        tests, train = [train[-cut:]], train[:-cut]
    if not len(train):
        raise ConfigError(
            f"pde task: {train_file} holds too few samples; expected at least 2 for training and test. Give more data."
        )
    return train[: config.n_train], {str(one.x.shape[-1]): one[: config.n_test] for one in tests}


def _generated(config: PdeConfig) -> tuple[FieldPairs, dict[str, FieldPairs]]:
    options = dict(config.problem_options)
    if config.resolution is not None:
        options["resolution"] = config.resolution
    problem = PROBLEMS[config.data].config.parse(options, where="pde task problem_options")
    train = sample_pairs(config.data, config.n_train or 1000, seed=config.data_seed, config=problem)
    test = sample_pairs(config.data, config.n_test or 200, seed=config.data_seed, split="test", config=problem)
    return train, {str(test.x.shape[-1]): test}


def _find_files(config: PdeConfig) -> tuple[Path, list[Path]]:
    path = Path(config.data)
    tests = [Path(one) for one in config.test_data]
    if path.is_file():
        return path, tests
    found = sorted(path.glob("*_train_*.pt")) if path.is_dir() else []
    if config.resolution is not None:
        found = [one for one in found if one.stem.endswith(f"_{config.resolution}")]
    if len(found) != 1:
        names = ", ".join(one.name for one in found) or "none"
        wanted = "*_train_*.pt" if config.resolution is None else f"*_train_*_{config.resolution}.pt"
        raise ConfigError(
            f"pde task: data={config.data} holds {names} of the wanted training files ({wanted}); expected a file, a "
            f"folder with one of them, or one of {', '.join(PROBLEMS)}. Set resolution to that of the data, or make "
            "them with fw pde generate."
        )
    own = found[0].with_name(found[0].name.replace("_train_", "_test_"))
    prefix = found[0].name.partition("_train_")[0]
    others = [one for one in sorted(path.glob(f"{prefix}_test_*.pt"), key=_resolution) if one != own]
    return found[0], tests or [*([own] if own.exists() else []), *others]


def _resolution(path: Path) -> int:
    digits = re.search(r"(\d+)$", path.stem)
    return int(digits[1]) if digits else 0


def _with_channels(pairs: FieldPairs, dimensions: int) -> FieldPairs:
    """Return float32 pairs with an axis for channels."""
    fields = []
    for one in (pairs.x, pairs.y):
        if one.ndim not in (dimensions + 1, dimensions + 2):
            raise ConfigError(
                f"pde task: fields of shape={tuple(one.shape)} do not fit n_modes with {dimensions} axes; expected (n, "
                "points of each axis) with or without channels. Give as many n_modes as the fields have axes."
            )
        fields.append((one if one.ndim == dimensions + 2 else one.unsqueeze(1)).float())
    if fields[0].shape[2:] != fields[1].shape[2:]:
        raise ConfigError(
            f"pde task: inputs of {tuple(fields[0].shape[2:])} points and solutions of {tuple(fields[1].shape[2:])} "
            "differ; expected the same points. Give x_axes and y_axes of the file, or other keys."
        )
    return replace(pairs, x=fields[0], y=fields[1])


def _require_same_channels(train: FieldPairs, tests: dict[str, FieldPairs]) -> None:
    for name, pairs in tests.items():
        for what, one, other in (("inputs", train.x, pairs.x), ("solutions", train.y, pairs.y)):
            if one.shape[1] != other.shape[1]:
                raise ConfigError(
                    f"pde task: {what} of the test set of resolution {name} have {other.shape[1]} channels, those of "
                    f"training {one.shape[1]}; expected as many. Choose other test_data, or times by x_index, y_index."
                )


def _is_periodic(config: PdeConfig) -> bool:
    if config.periodic is not None:
        return config.periodic
    names = [config.data] if config.data in PROBLEMS else [config.data, _find_files(config)[0].name]
    return not any("darcy" in name.lower() for name in names)


def _neuraloperator_fno(options: dict[str, Any], domain_padding: float) -> nn.Module:
    try:
        from neuralop.models import FNO as TheirFNO
    except (ImportError, RuntimeError, OSError) as error:
        raise MissingExtraError(
            "pde task: model=neuraloperator needs the package neuraloperator; expected it installed. Run pip install "
            "'featherweight[operators]', or take model: fno, which has the same layers."
        ) from error
    return TheirFNO(**options, domain_padding=domain_padding or None)
