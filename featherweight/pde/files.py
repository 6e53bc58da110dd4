"""Files of field pairs: neuraloperator's `.pt` layout, and readers for the other forms that public data sets have.

A data set is a pair of tensors of n samples each, without an axis for channels: x (n, s_1, .., s_d), y alike.
"""

import os
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from featherweight.config.files import new_file
from featherweight.errors import ConfigError, MissingExtraError

X_KEYS = ("x", "a", "coeff", "input", "inputs")
Y_KEYS = ("y", "u", "sol", "output", "outputs")
"""Names under which public data sets keep inputs and solutions; the first one present counts."""

SUFFIXES = (".pt", ".npz", ".h5", ".hdf5", ".mat", ".safetensors")


@dataclass(frozen=True)
class FieldPairs:
    """Inputs and solutions.

    Args:
        x: (n, s_1, .., s_d) or (n, C, s_1, .., s_d).
        y: alike, of the same n.
    """

    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        return len(self.x)


def read_pairs(
    path: str | os.PathLike[str], *, x_key: str | None = None, y_key: str | None = None, y_index: int | None = None
) -> FieldPairs:
    """Read a data set.

    Args:
        path: a .pt, .npz, .h5, .hdf5, .mat or .safetensors file; .pt files are loaded without running code in them.
        x_key: name of the inputs; None takes the first known one (`X_KEYS`).
        y_key: name of the solutions; None takes the first known one (`Y_KEYS`).
        y_index: index along the last axis of the solutions, for files that hold several times, as the Navier-Stokes
            files of Li et al. do; None takes all.
    Returns:
        The pairs, as stored; booleans and integers as float32.
    Raises:
        ConfigError: if the file cannot be read, or holds no such pair.
        MissingExtraError: if a package for this form is missing.
    """
    path = Path(path)
    tensors = read_tensors(path)
    x, y = (_pick(path, tensors, key, known) for key, known in ((x_key, X_KEYS), (y_key, Y_KEYS)))
    if y_index is not None:
        y = y[..., y_index]
    if len(x) != len(y):
        raise ConfigError(
            f"read_pairs: {path} holds x={tuple(x.shape)} and y={tuple(y.shape)}; expected as many inputs as "
            f"solutions. "
            "Name them with x_key and y_key."
        )
    return FieldPairs(*(one.float() if not one.is_floating_point() else one for one in (x, y)))


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return all numeric arrays of a file by name.

    Raises:
        ConfigError: if the file cannot be read.
        MissingExtraError: if a package for this form is missing.
    """
    readers = {
        ".pt": _read_pt,
        ".npz": _read_npz,
        ".h5": _read_hdf5,
        ".hdf5": _read_hdf5,
        ".mat": _read_mat,
        ".safetensors": _read_safetensors,
    }
    if path.suffix not in readers:
        raise ConfigError(
            f"read_tensors: path={path} has an unknown ending; expected one of {', '.join(SUFFIXES)}. Convert the file."
        )
    try:
        return readers[path.suffix](path)
    except (OSError, ValueError, RuntimeError, KeyError, EOFError, pickle.UnpicklingError) as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError(
            f"read_tensors: path={path} cannot be read ({reason}); expected a data set in the form of its ending. "
            f"Correct "
            "the path, or load the file anew."
        ) from error


def write_pairs(path: Path, x: Tensor, y: Tensor, facts: Mapping[str, Any]) -> None:
    """Write a `.pt` file in neuraloperator's layout; it appears complete or not at all.

    Args:
        path: where.
        x: inputs.
        y: solutions.
        facts: further plain values, under names of their own; neuraloperator ignores them.
    """
    write_torch(path, {"x": x, "y": y, **facts})


def write_torch(path: Path, content: Any) -> None:
    """Write with `torch.save` a file that appears complete or not at all."""
    with new_file(path) as temporary, open(temporary, "wb") as file:
        torch.save(content, file)


def _pick(path: Path, tensors: Mapping[str, Tensor], key: str | None, known: tuple[str, ...]) -> Tensor:
    for name in (key,) if key is not None else known:
        if name in tensors:
            return tensors[name]
    raise ConfigError(
        f"read_pairs: {path} has no array named {key or ' or '.join(known)}; expected one of its names: "
        f"{', '.join(tensors) or 'none'}. Give x_key and y_key."
    )


def _read_pt(path: Path) -> dict[str, Tensor]:
    content = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(content, dict):
        raise ValueError(f"it holds a {type(content).__name__} and not a dictionary")
    return {str(key): value for key, value in content.items() if isinstance(value, Tensor)}


def _read_npz(path: Path) -> dict[str, Tensor]:
    import numpy as np

    with np.load(path, allow_pickle=False) as arrays:
        return {key: torch.from_numpy(arrays[key]) for key in arrays.files}


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(path)


def _read_hdf5(path: Path, *, is_matlab: bool = False) -> dict[str, Tensor]:
    h5py = _extra("h5py")
    with h5py.File(path, "r") as file:
        arrays = {key: value[()] for key, value in file.items() if isinstance(value, h5py.Dataset)}
    # MATLAB writes columns first, so its axes come out in reverse order.
    return {key: torch.from_numpy(value.T.copy() if is_matlab else value) for key, value in arrays.items()}


def _read_mat(path: Path) -> dict[str, Tensor]:
    with open(path, "rb") as file:
        if b"MATLAB 7.3" in file.read(128):
            return _read_hdf5(path, is_matlab=True)
    arrays = _extra("scipy.io").loadmat(path)
    numeric = {k: v for k, v in arrays.items() if not k.startswith("__") and getattr(v, "dtype", None) is not None}
    return {
        k: torch.from_numpy(v.astype(v.dtype.newbyteorder("="))) for k, v in numeric.items() if v.dtype.kind in "fiub"
    }


def _extra(name: str) -> Any:
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingExtraError(
            f"read_tensors: the package {name.partition('.')[0]} is not installed; expected it for this kind of file. "
            f"Run "
            "pip install 'featherweight[pde]'."
        ) from error
