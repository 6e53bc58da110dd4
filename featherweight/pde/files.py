"""Data sets as pairs of inputs and solutions: read from whatever layout, written in neuraloperator's.

A data set of ours is a pair of tensors of n samples each, without an axis for channels: x (n, s_1, .., s_d), y alike.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from featherweight.config.files import new_file
from featherweight.errors import ConfigError
from featherweight.pde.axes import POINTS, arranged, indexed, infer_axes
from featherweight.pde.stored import StoredFile, opened

X_KEYS = ("x", "a", "coeff", "input", "inputs", "nu")
Y_KEYS = ("y", "u", "sol", "output", "outputs", "tensor", "data")
"""Names under which public data sets keep inputs and solutions; the first one present counts."""


@dataclass(frozen=True)
class FieldPairs:
    """Inputs and solutions.

    Args:
        x: (n, s_1, .., s_d) or (n, C, s_1, .., s_d).
        y: alike, of the same n.
        origin: which arrays of a file they are, and their axes; empty for what was not read.
    """

    x: Tensor
    y: Tensor
    origin: str = ""

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, chosen: slice) -> "FieldPairs":
        """Return some of the samples."""
        return replace(self, x=self.x[chosen], y=self.y[chosen])


def read_pairs(
    path: str | os.PathLike[str],
    *,
    x_key: str | None = None,
    y_key: str | None = None,
    x_index: int | None = None,
    y_index: int | None = None,
    x_axes: str | None = None,
    y_axes: str | None = None,
    dimensions: int | None = None,
) -> FieldPairs:
    """Read a data set.

    A file with one array over time, as most of PDEBench's, gives the first time as input and the last one as solution,
    unless `x_index` and `y_index` say otherwise.

    Args:
        path: a .pt, .npz, .h5, .hdf5, .mat or .safetensors file; .pt files are loaded without running code in them.
        x_key: name of the inputs; None takes the first known one (`X_KEYS`).
        y_key: name of the solutions; None takes the first known one (`Y_KEYS`).
        x_index: which time of inputs with several; None takes all, as channels.
        y_index: alike for the solutions, as in the Navier-Stokes files of Li et al.
        x_axes: a letter for each axis of the stored inputs: n samples, c channels, t times, x y z points. None: known
            from the file's coordinates, or from the shapes (`infer_axes`).
        y_axes: alike for the solutions.
        dimensions: axes of points, if known.
    Returns:
        The pairs as (n, points) or (n, channels, points); booleans and integers as float32.
    Raises:
        ConfigError: if the file cannot be read, holds no such pair, or its axes are not known.
        MissingExtraError: if a package for this form is missing.
    Cost: of HDF5 files only the chosen times are read.
    """
    path, where = Path(path), "read_pairs"
    with opened(path) as file:
        x_name, y_name = _names(path, file, x_key, y_key)
        x, y = file.arrays[x_name], file.arrays[y_name]
        told = [file.axes_of(x_name, x_axes, "x_axes"), file.axes_of(y_name, y_axes, "y_axes")]
        if x_name == y_name:
            told = [told[0] or told[1]] * 2
            if told[0] is None or "t" not in told[0]:
                raise ConfigError(
                    f"{where}: x_key={x_name} and y_key={y_name} of {path} are one array of shape {x.shape} whose axis "
                    "of times is not known; expected two arrays, or one over time. Give y_axes, one letter an axis (n "
                    "samples, t times, x y z points, c channels), or other keys."
                )
            x_index, y_index = 0 if x_index is None else x_index, -1 if y_index is None else y_index
        else:
            told = list(infer_axes(x.shape, y.shape, dimensions, told=(told[0], told[1]), where=f"{where}: {path}"))
        fields, words = [], []
        for name, stored, axes, index, option in (
            (x_name, x, told[0], x_index, "x_index"),
            (y_name, y, told[1], y_index, "y_index"),
        ):
            axes = axes or _plain_axes(stored.shape, dimensions, is_indexed=index is not None)
            selection, left = indexed(axes, stored.shape, index, name=option, where=f"{where}: {path}")
            one = arranged(stored.read(tuple(selection)), left)
            fields.append(one if one.is_floating_point() else one.float())
            words.append(f"{name} ({' '.join(axes)}{'' if index is None else f', index {index}'})")
    if len(fields[0]) != len(fields[1]):
        shapes = " and ".join(f"{name}={tuple(one.shape)}" for name, one in zip("xy", fields, strict=True))
        raise ConfigError(
            f"{where}: {path} holds {shapes}; expected as many inputs as solutions. Name them with x_key and y_key."
        )
    return FieldPairs(fields[0], fields[1], origin=" -> ".join(words))


def _plain_axes(shape: tuple[int, ...], dimensions: int | None, *, is_indexed: bool) -> str:
    """Return axes under which an array stays as it stands."""
    points = len(shape) - 1 if dimensions is None else dimensions
    if dimensions is None and (is_indexed or points > len(POINTS)):
        points -= 1
    return ("n" if points == len(shape) - 1 else "nc") + POINTS[:points]


def _names(path: Path, file: StoredFile, x_key: str | None, y_key: str | None) -> tuple[str, str]:
    """Return the names of inputs and solutions; the same one if an array over time is both."""
    # Numbers beside the fields, such as a viscosity named nu, are no inputs.
    fields = [name for name, one in file.arrays.items() if len(one.shape) > 1] or list(file.arrays)
    x, y = (
        key if key is not None else next((name for name in known if name in fields), None)
        for key, known in ((x_key, X_KEYS), (y_key, Y_KEYS))
    )
    if x_key is None and x is None:
        x = y
    for name, known in ((y, Y_KEYS), (x, X_KEYS)):
        if name not in file.arrays:
            shapes = ", ".join(f"{key} {one.shape}" for key, one in file.arrays.items())
            raise ConfigError(
                f"read_pairs: {path} has no array named {name or ' or '.join(known)}; expected one of its own: "
                f"{shapes or 'none'}. Give x_key and y_key."
            )
    assert x is not None and y is not None
    return x, y


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return all numeric arrays of a file by name, as stored.

    Raises:
        ConfigError: if the file cannot be read.
        MissingExtraError: if a package for this form is missing.
    """
    with opened(path) as file:
        return {name: one.read((slice(None),) * len(one.shape)) for name, one in file.arrays.items()}


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
