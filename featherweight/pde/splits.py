"""The training and test data of a task: generated samples, a file, or a folder of files."""

from dataclasses import replace

from featherweight.errors import ConfigError
from featherweight.pde.data_files import find_files
from featherweight.pde.files import FieldPairs, read_pairs
from featherweight.pde.generation import sample_pairs
from featherweight.pde.options import PdeConfig
from featherweight.pde.problem_options import problem_options
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


def _read(config: PdeConfig) -> tuple[FieldPairs, dict[str, FieldPairs]]:
    train_file, test_files = find_files(config)
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
    names = [config.data] if config.data in PROBLEMS else [config.data, find_files(config)[0].name]
    return not any("darcy" in name.lower() for name in names)
