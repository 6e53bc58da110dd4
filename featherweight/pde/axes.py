"""Which axis of a stored array is which: told, or known because one reading alone fits; never guessed.

Axes are words of one letter an axis: n samples, c channels, t times, x y z points. Fields come out as (n, points) or
(n, channels, points), where the times of an array, if none is chosen, are channels.
"""

from collections.abc import Mapping

from torch import Tensor

from featherweight.errors import ConfigError

POINTS = "xyz"
ORDER = "ntcxyz"
_MEANING = "one letter an axis: n samples, c channels, t times, x y z points, such as nxyt"

Shape = tuple[int, ...]


def check_axes(axes: str, shape: Shape, *, name: str, where: str) -> str:
    """Return the axes if they fit an array.

    Raises:
        ConfigError: if they are not as many as the array has, not all different, unknown, or lack samples or points.
    """
    count = sum(letter in axes for letter in POINTS)
    is_complete = "n" in axes and count and set(POINTS[:count]) <= set(axes)
    if len(axes) != len(shape) or len(set(axes)) != len(axes) or not set(axes) <= set(ORDER) or not is_complete:
        raise ConfigError(
            f"{where}: {name}={axes} does not fit an array of shape {shape}; expected {_MEANING}. Correct {name}."
        )
    return axes


def axes_of_coordinates(shape: Shape, lengths: Mapping[str, int]) -> str | None:
    """Return the axes (n, t, points, and c if one is left) of an array whose file holds coordinates, or None.

    Args:
        shape: of the array.
        lengths: of the coordinates by letter; those of times may be edges, one more than there are times.
    """
    points = "".join(letter for letter in POINTS if letter in lengths)
    if "t" not in lengths or points != POINTS[: len(points)] or not points:
        return None
    axes = "nt" + points
    axes += "c" if len(shape) == len(axes) + 1 else ""
    if len(shape) != len(axes):
        return None
    fits = all(size == lengths[letter] for letter, size in zip(points, shape[2:], strict=False))
    return axes if fits and lengths["t"] - shape[1] in (0, 1) else None


def infer_axes(
    x: Shape, y: Shape, dimensions: int | None, *, told: tuple[str | None, str | None] = (None, None), where: str
) -> tuple[str | None, str | None]:
    """Return the axes of inputs and solutions from their shapes; None for an array that stands as it should.

    Known is (n, points) or (n, channels, points) where both have as many axes, and whatever else is the only reading in
    which both have the same points.

    Args:
        x: shape of the inputs.
        y: shape of the solutions.
        dimensions: axes of points; None: not known.
        told: the axes of one of them, or of both.
        where: opens a message.
    Raises:
        ConfigError: if no reading fits, or two do.
    Example:
        >>> infer_axes((8, 16, 16), (8, 16, 16, 5), None, where="")
        ('nxy', 'nxyc')
    """
    known = next((axes for axes in told if axes), None)
    if known:
        dimensions = sum(letter in known for letter in POINTS)
    elif dimensions is None:
        if len(x) == len(y) and x[2:] == y[2:] and (x[1:] == y[1:] or len(x) > 2):
            return None, None
        dimensions = min(len(x), len(y)) - (2 if len(x) == len(y) > 2 else 1)
    elif not {len(x), len(y)} <= {dimensions + 1, dimensions + 2}:
        return None, None  # the numbers of axes are wrong, which the caller can say better
    readings = _common_readings(x, y, told, POINTS[:dimensions])
    is_plain = all(len(one) == dimensions + 1 or one[1] < min(one[2:]) for one in (x, y)) and len(x) == len(y)
    if not known and is_plain and any(all(_is_plain(axes) for axes in pair) for pair in readings):
        return None, None
    if len(readings) == 1:
        return readings[0]
    problem = "can be read in more than one way" if readings else "have no points in common"
    raise ConfigError(
        f"{where}: x={x} and y={y} {problem}; expected fields whose axes are known. Give x_axes and y_axes: {_MEANING}."
    )


def _common_readings(x: Shape, y: Shape, told: tuple[str | None, str | None], points: str) -> list[tuple[str, str]]:
    def readings(shape: Shape, axes: str | None) -> list[str]:
        return [axes] if axes else [a for a in (f"n{points}", f"nc{points}", f"n{points}c") if len(a) == len(shape)]

    def sizes(shape: Shape, axes: str) -> list[int]:
        return [shape[axes.index(letter)] for letter in points if letter in axes]

    pairs = [(one, two) for one in readings(x, told[0]) for two in readings(y, told[1])]
    return [(one, two) for one, two in pairs if sizes(x, one) == sizes(y, two)]


def _is_plain(axes: str) -> bool:
    return not axes.endswith("c")


def indexed(axes: str, shape: Shape, index: int | None, *, name: str, where: str) -> tuple[list[int | slice], str]:
    """Return what to read of an array to have one of its times, and the axes of what is read.

    Args:
        axes: of the array.
        shape: of the array.
        index: of the time; where no axis is known to be time, of the channel. None: all.
        name: of the option that says so.
        where: opens a message.
    Raises:
        ConfigError: if the array has no such axis, or it is shorter.
    """
    selection: list[int | slice] = [slice(None)] * len(shape)
    if index is None:
        return selection, axes
    letter = "t" if "t" in axes else "c"
    size = shape[axes.index(letter)] if letter in axes else 0
    if not -size <= index < size:
        raise ConfigError(
            f"{where}: {name}={index} is out of range in an array of shape {shape} with axes {axes}; expected {-size} "
            f"<= {name} < {size}. Correct it."
            if size
            else f"{where}: {name}={index} chooses a time, and the array of shape {shape} with axes {axes} has one "
            f"alone; expected none. Leave {name} out, or name the axes."
        )
    selection[axes.index(letter)] = index
    return selection, axes.replace(letter, "")


def arranged(array: Tensor, axes: str) -> Tensor:
    """Return an array as (n, points), or (n, channels, points) if it has times or channels; times come first.

    Example:
        >>> import torch
        >>> arranged(torch.zeros(8, 16, 32, 5, 2), "nxytc").shape
        torch.Size([8, 10, 16, 32])
    """
    order = sorted(axes, key=ORDER.index)
    moved = array.permute([axes.index(letter) for letter in order])
    return moved.flatten(1, 2) if "t" in axes and "c" in axes else moved
