"""Data sets of our own: any number of samples, on all cores, the same ones however often the work was interrupted.

Sample i follows from (seed, split, i) and samples are solved in chunks of a fixed size, so neither the number of
processes nor an interruption changes a bit. Finished chunks wait in a hidden folder beside the data set.
"""

import hashlib
import json
import multiprocessing
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from featherweight.config import Config
from featherweight.errors import ConfigError, NumericsError
from featherweight.linalg.orthonormal import one_thread
from featherweight.linalg.random import keyed_generator
from featherweight.pde.axes import POINTS
from featherweight.pde.files import FieldPairs, write_pairs, write_torch
from featherweight.pde.problems import find_problem

CHUNK = 16
"""Samples that are solved at once; part of what a data set is, as rounding may depend on it."""

DataSplit = Literal["train", "test"]
_SPLITS: tuple[DataSplit, ...] = ("train", "test")


def sample_pairs(
    problem: str, n: int, *, seed: int = 0, split: DataSplit = "train", config: Config | None = None
) -> FieldPairs:
    """Generate a data set in memory.

    Args:
        problem: a name of `featherweight.pde.problems.PROBLEMS`, such as darcy.
        n: samples.
        seed: of all samples.
        split: "train" and "test" have different samples under the same seed.
        config: options of the problem; None takes the defaults.
    Returns:
        float32 inputs and solutions.
    Raises:
        ConfigError: for an unknown problem.
        NumericsError: if `steps` of the options are too few; see `time_tolerance` there.
    Example:
        >>> from featherweight.pde.problem_options import DarcyConfig
        >>> sample_pairs("darcy", 3, config=DarcyConfig(resolution=16)).y.shape
        torch.Size([3, 16, 16])
    """
    config = find_problem(problem).config() if config is None else config
    if n and getattr(config, "steps", None) is not None:  # those that are left open were measured
        estimated_errors(problem, config, seed=seed, split=split, n=n)
    chunks = [_chunk(problem, config, seed, split, start, min(start + CHUNK, n)) for start in range(0, n, CHUNK)]
    x, y = (torch.cat(parts) for parts in zip(*chunks, strict=True))
    return FieldPairs(x, y)


def estimated_errors(problem: str, config: Config, *, seed: int, split: DataSplit, n: int) -> dict[str, float]:
    """Return the solver's errors on the first two of n samples by name; `Problem.errors` says which.

    Raises:
        NumericsError: if that of the time step is larger than the options tolerate.
    Cost: about two samples more.
    """
    generators = [keyed_generator(seed, _SPLITS.index(split), i) for i in range(min(2, n))]
    with one_thread(torch.device("cpu")):
        errors = find_problem(problem).errors(config, generators)
    options = config.to_dict()
    limit, found = options.get("time_tolerance"), errors.get("time_step", 0.0)
    if limit is not None and found > limit:
        raise NumericsError(
            f"generate: steps={options['steps']} to final_time={options['final_time']} give {problem} a relative error "
            f"of {found:.1g}; expected at most time_tolerance={limit}. Leave steps out, double them, or raise "
            "time_tolerance."
        )
    return errors


def generate(
    problem: str,
    out: str | os.PathLike[str],
    *,
    n: int = 1000,
    n_test: int = 200,
    seed: int = 0,
    config: Config | None = None,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> list[Path]:
    """Generate a training and a test file in neuraloperator's layout.

    Files are `<problem>_train_<resolution>.pt` and `<problem>_test_<resolution>.pt` with `x` and `y`, their axes, the
    settings, and estimates of the solver's errors (`estimated_errors`); a file that exists with the same settings is
    left alone, so a second call continues an interrupted one.

    Args:
        problem: a name of `featherweight.pde.problems.PROBLEMS`, such as darcy.
        out: the folder.
        n: training samples.
        n_test: test samples; 0 for none.
        seed: of all samples.
        config: options of the problem; None takes the defaults.
        workers: processes. Above 1 they are spawned, so a script that calls this needs ``if __name__ == "__main__":``.
        progress: called with (finished samples, all samples).
    Returns:
        The paths of the files.
    Raises:
        ConfigError: for an unknown problem, or if a file with other settings is in the way.
        NumericsError: if the time step is too long.
    """
    config = find_problem(problem).config() if config is None else config
    config = config.resolved()  # type: ignore[attr-defined]
    resolution = config.to_dict()["resolution"]
    folder = Path(out)
    jobs = []
    for split, count in zip(_SPLITS, (n, n_test), strict=True):
        path = folder / f"{problem}_{split}_{resolution}.pt"
        settings = {"problem": problem, "split": split, "n": count, "seed": seed, "chunk": CHUNK, **config.to_dict()}
        settings.pop("time_tolerance", None)  # changes no sample
        if count and not _is_done(path, settings):
            jobs.append((path, settings))
    total, done = sum(settings["n"] for _, settings in jobs), 0
    for path, settings in jobs:
        errors = estimated_errors(problem, config, seed=seed, split=settings["split"], n=settings["n"])
        for finished in _chunks_on_disk(problem, config, path, settings, workers):
            done += finished
            if progress is not None:
                progress(done, total)
        _assemble(path, settings, errors)
    return [folder / f"{problem}_{s}_{resolution}.pt" for s, c in zip(_SPLITS, (n, n_test), strict=True) if c]


def _chunk(problem: str, config: Config, seed: int, split: str, start: int, stop: int) -> tuple[Tensor, Tensor]:
    """Return float32 inputs and solutions of the samples start .. stop - 1."""
    generators = [keyed_generator(seed, _SPLITS.index(split), i) for i in range(start, stop)]
    with one_thread(torch.device("cpu")):  # sums of several threads would depend on their number
        x, y = find_problem(problem).samples(config, generators)
    return x.float().contiguous(), y.float().contiguous()


def _chunks_on_disk(problem: str, config: Config, path: Path, settings: dict[str, Any], workers: int) -> Iterator[int]:
    """Make every chunk that is not there yet; yield the samples of each, those of present ones at once."""
    parts = _parts(path, settings)
    parts.mkdir(parents=True, exist_ok=True)
    todo = []
    for start in range(0, settings["n"], CHUNK):
        stop = min(start + CHUNK, settings["n"])
        if (parts / f"{start:08d}.pt").exists():
            yield stop - start
        else:
            todo.append((problem, config.to_dict(), settings["seed"], settings["split"], start, stop, parts))
    if workers == 1 or len(todo) < 2:
        for job in todo:
            yield _write_chunk(*job)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(todo)), mp_context=context) as pool:
        for future in as_completed([pool.submit(_write_chunk, *job) for job in todo]):
            yield future.result()


def _write_chunk(
    problem: str, options: dict[str, Any], seed: int, split: str, start: int, stop: int, parts: Path
) -> int:
    config = find_problem(problem).config.parse(options, where="pde generate")
    write_torch(parts / f"{start:08d}.pt", _chunk(problem, config, seed, split, start, stop))
    return stop - start


def _assemble(path: Path, settings: dict[str, Any], errors: dict[str, float]) -> None:
    parts = _parts(path, settings)
    chunks = [torch.load(part, weights_only=True) for part in sorted(parts.glob("0*.pt"))]
    x, y = (torch.cat(pieces) for pieces in zip(*chunks, strict=True))
    axes = {"x_axes": f"n{POINTS[: x.ndim - 1]}", "y_axes": f"n{'t' * (y.ndim - x.ndim)}{POINTS[: x.ndim - 1]}"}
    write_pairs(path, x, y, {"settings": settings, "errors": errors, **axes})
    shutil.rmtree(parts)


def _parts(path: Path, settings: dict[str, Any]) -> Path:
    """Return the folder of finished chunks; its name follows from the settings, so that others are never mixed in."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
    return path.parent / f".{path.stem}.{digest}"


def _is_done(path: Path, settings: dict[str, Any]) -> bool:
    if not path.exists():
        return False
    found = torch.load(path, weights_only=True, mmap=True).get("settings")
    if found != settings:
        different = sorted(k for k in settings if (found or {}).get(k) != settings[k])
        raise ConfigError(
            f"generate: {path} exists with other settings ({', '.join(different)}); expected none, or the same. Choose "
            "another folder, or remove the file."
        )
    return True
