"""The arrays of a file by name, whatever its form: shapes at once, values when asked for.

Forms: .pt, .npz, .safetensors, .h5 and .hdf5 (also with a group for each sample, as PDEBench has), .mat (both kinds).
"""

import pickle
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from featherweight.errors import ConfigError, MissingExtraError
from featherweight.pde.axes import axes_of_coordinates, check_axes

Selection = tuple[int | slice, ...]
"""One entry for each axis of an array."""


@dataclass(frozen=True)
class StoredArray:
    """An array of a file."""

    shape: tuple[int, ...]
    """Of the whole."""
    read: Callable[[Selection], Tensor]
    """Returns a part of it."""


@dataclass(frozen=True)
class StoredFile:
    """An open file."""

    arrays: Mapping[str, StoredArray]
    """Numeric arrays."""
    axes: Mapping[str, str] = field(default_factory=dict)
    """Axes of arrays by name, where the file says them in so many words, as ours do."""
    lengths: Mapping[str, int] = field(default_factory=dict)
    """Lengths of the coordinates t, x, y, z that the file holds."""

    def axes_of(self, name: str, told: str | None, option: str) -> str | None:
        """Return the axes of an array: as told, or as the file says; None if neither does."""
        shape = self.arrays[name].shape
        if told is not None:
            return check_axes(told, shape, name=option, where="read_pairs")
        if name in self.axes:
            return check_axes(self.axes[name], shape, name=f"{name}_axes", where="read_pairs")
        return axes_of_coordinates(shape, self.lengths)


@contextmanager
def opened(path: Path) -> Iterator[StoredFile]:
    """Open a file of arrays.

    Raises:
        ConfigError: if it cannot be read, or its form is unknown.
        MissingExtraError: if a package for this form is missing.
    """
    openers = {
        ".pt": _open_pt,
        ".npz": _open_npz,
        ".h5": _open_hdf5,
        ".hdf5": _open_hdf5,
        ".mat": _open_mat,
        ".safetensors": _open_safetensors,
    }
    if path.suffix not in openers:
        raise ConfigError(
            f"read_tensors: path={path} has an unknown ending; expected one of {', '.join(openers)}. Convert the file."
        )
    try:
        with openers[path.suffix](path) as file:
            yield file
    except (ConfigError, MissingExtraError):
        raise
    except (OSError, ValueError, RuntimeError, KeyError, EOFError, pickle.UnpicklingError) as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError(
            f"read_tensors: path={path} cannot be read ({reason}); expected a data set in the form of its ending. "
            "Correct the path, or load the file anew."
        ) from error


def _in_memory(tensors: Mapping[str, Tensor]) -> dict[str, StoredArray]:
    return {name: StoredArray(tuple(one.shape), one.__getitem__) for name, one in tensors.items()}


@contextmanager
def _open_pt(path: Path) -> Iterator[StoredFile]:
    content = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(content, dict):
        raise ValueError(f"it holds a {type(content).__name__} and not a dictionary")
    arrays = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    axes = {name: str(content[f"{name}_axes"]) for name in arrays if f"{name}_axes" in content}
    yield StoredFile(_in_memory(arrays), axes)


@contextmanager
def _open_npz(path: Path) -> Iterator[StoredFile]:
    import numpy as np

    with np.load(path, allow_pickle=False) as arrays:
        numeric = {key: arrays[key] for key in arrays.files if arrays[key].dtype.kind in "fiub"}
    yield StoredFile(_in_memory({key: _to_tensor(one) for key, one in numeric.items()}))


@contextmanager
def _open_safetensors(path: Path) -> Iterator[StoredFile]:
    from safetensors.torch import load_file

    yield StoredFile(_in_memory(load_file(path)))


@contextmanager
def _open_mat(path: Path) -> Iterator[StoredFile]:
    with open(path, "rb") as file:
        is_hdf5 = b"MATLAB 7.3" in file.read(128)
    if is_hdf5:
        # MATLAB writes columns first, so its axes come out in reverse order.
        with _extra("h5py").File(path, "r") as content:
            datasets = _datasets(content)
            yield StoredFile(_in_memory({name: _to_tensor(one[()].T.copy()) for name, one in datasets.items()}))
        return
    arrays = _extra("scipy.io").loadmat(path)
    numeric = {k: v for k, v in arrays.items() if not k.startswith("__") and getattr(v, "dtype", None) is not None}
    yield StoredFile(_in_memory({k: _to_tensor(v) for k, v in numeric.items() if v.dtype.kind in "fiub"}))


@contextmanager
def _open_hdf5(path: Path) -> Iterator[StoredFile]:
    h5py = _extra("h5py")
    with h5py.File(path, "r") as content:
        groups = [one for _, one in sorted(content.items()) if isinstance(one, h5py.Group)]
        inside = [_datasets(group) for group in groups]
        shapes = [{name: one.shape for name, one in datasets.items()} for datasets in inside]
        is_grouped = len(groups) == len(content) > 1 and all(one == shapes[0] for one in shapes)
        if is_grouped:
            arrays = {name: _stacked([datasets[name] for datasets in inside]) for name in inside[0]}
            coordinates = inside[0]
        else:
            coordinates = inside[0] if len(groups) == len(content) == 1 else _datasets(content)
            arrays = {name: StoredArray(one.shape, _reader(one)) for name, one in coordinates.items()}
        lengths = {name: len(one) for name, one in coordinates.items() if one.ndim == 1}
        yield StoredFile(arrays, lengths=_coordinate_lengths(lengths))


def _datasets(group: Any) -> dict[str, Any]:
    """Return the numeric arrays in a group and in its groups, by their path in it."""
    found: dict[str, Any] = {}

    def visit(name: str, one: Any) -> None:
        if getattr(one, "dtype", None) is not None and one.dtype.kind in "fiub":
            found[name] = one

    group.visititems(visit)
    return found


def _reader(dataset: Any) -> Callable[[Selection], Tensor]:
    return lambda selection: _to_tensor(dataset[selection])


def _stacked(datasets: list[Any]) -> StoredArray:
    """Return the arrays of all samples as one, whose first axis counts the samples."""

    def read(selection: Selection) -> Tensor:
        chosen = torch.arange(len(datasets))[selection[0]]
        return torch.stack([_to_tensor(datasets[int(one)][selection[1:]]) for one in chosen])

    return StoredArray((len(datasets), *datasets[0].shape), read)


def _coordinate_lengths(lengths: Mapping[str, int]) -> dict[str, int]:
    """Return the lengths of t, x, y, z under the names that PDEBench gives them: x-coordinate, or grid/x."""
    return {
        letter: lengths[name]
        for letter in "txyz"
        for name in (f"{letter}-coordinate", f"grid/{letter}")
        if name in lengths
    }


def _to_tensor(array: Any) -> Tensor:
    import numpy as np

    array = np.asarray(array)
    return torch.from_numpy(np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("=")))


def _extra(name: str) -> Any:
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingExtraError(
            f"read_tensors: the package {name.partition('.')[0]} is not installed; expected it for this kind of file. "
            "Run pip install 'featherweight[pde]'."
        ) from error
