"""The training and test data of a task: generated samples, a file, or a folder of files."""

import re
from dataclasses import replace
from pathlib import Path

from featherweight.config import Config
from featherweight.errors import ConfigError
from featherweight.pde.files import FieldPairs, read_pairs
from featherweight.pde.generation import sample_pairs
from featherweight.pde.options import PdeConfig
from featherweight.pde.problems import PROBLEMS


def load_splits(config: PdeConfig) -> tuple[FieldPairs, dict[str, FieldPairs]]:
    """Return the training pairs, and the test pairs by resolution, of which the first counts; all with channels.

    Raises:
        ConfigError: if they cannot be found, or do not fit each other or `n_modes`.
        MissingExtraError: if a package for the files is missing.
    """
    train, tests = _generated(config) if config.data in PROBLEMS else _read(config)
    train = _with_channels(train, len(config.n_modes))
    tests = {name: _with_channels(pairs, len(config.n_modes)) for name, pairs in tests.items()}
    _require_same_channels(train, tests)
    return train, tests


def problem_options(config: PdeConfig) -> Config:
    """Return the options of the problem whose samples are generated."""
    options = dict(config.problem_options)
    if config.resolution is not None:
        options["resolution"] = config.resolution
    return PROBLEMS[config.data].config.parse(options, where="pde task problem_options")


def _read(config: PdeConfig) -> tuple[FieldPairs, dict[str, FieldPairs]]:
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
    problem = problem_options(config)
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


def is_periodic(config: PdeConfig) -> bool:
    """Tell whether the fields wrap around: as the options say, or else as the names of problem and files do."""
    if config.periodic is not None:
        return config.periodic
    names = [config.data] if config.data in PROBLEMS else [config.data, _find_files(config)[0].name]
    return not any("darcy" in name.lower() for name in names)
