"""The points of a sweep: every combination of the values that some keys of a recipe take."""

import itertools
import json
import re
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from featherweight.config.mapping_file import parse_value
from featherweight.errors import ConfigError
from featherweight.training.recipe import Recipe

SEED = "seed"
"""The axis over which a sweep takes means."""
LONGEST_NAME = 120


@dataclass(frozen=True)
class Point:
    """One run of a sweep."""

    name: str
    """Of its folder: optimizer.lr=0.0001,seed=0."""
    values: Mapping[str, Any]
    """What it has in the place of the recipe's values, by key."""
    recipe: Recipe

    @property
    def setting(self) -> str:
        """Its values but for the seed, as text; runs that differ in the seed alone share it."""
        return label({key: value for key, value in self.values.items() if key != SEED}) or "recipe"


def split_axes(changes: Iterable[str]) -> tuple[list[str], dict[str, list[Any]]]:
    """Return the changes that hold for every point, and the axes: keys with several values.

    Args:
        changes: "key=value" or "key=value,value,..."; a value that has commas itself stands in quotes or brackets.
    Raises:
        ConfigError: if a change is malformed, or an axis names a value or itself twice.
    Example:
        >>> split_axes(["steps=20", "optimizer.lr=1e-4,2e-4", "optimizer.betas=[0.9, 0.99],[0.8, 0.99]"])
        (['steps=20'], {'optimizer.lr': [0.0001, 0.0002], 'optimizer.betas': [[0.9, 0.99], [0.8, 0.99]]})
    """
    fixed: list[str] = []
    axes: dict[str, list[Any]] = {}
    for change in changes:
        key, equals, text = change.partition("=")
        key = key.strip()
        try:
            values = parse_value(f"[{text}]") if equals and text.strip() else None
        except ValueError:
            values = None
        if not isinstance(values, list) or len(values) < 2:
            fixed.append(change)
            continue
        if key in axes:
            raise ConfigError(f"sweep: {key} is given twice; expected each axis once. Write all its values in one.")
        for value in values:
            if values.count(value) > 1:
                raise ConfigError(
                    f"sweep: {key}={text} names {value!r} twice; expected different values. Leave one of them out."
                )
        axes[key] = values
    return fixed, axes


def grid_points(recipe: Recipe, axes: Mapping[str, list[Any]], *, where: str = "sweep") -> list[Point]:
    """Return every point of a grid; the last axis changes fastest.

    Args:
        recipe: with the changes that hold for all.
        axes: from `split_axes`.
        where: what to call the origin in messages.
    Raises:
        ConfigError: if there is no axis, or a value is not allowed.
    """
    if not axes:
        raise ConfigError(
            f"{where}: no key has several values; expected at least one axis. Write for example seed=0,1,2."
        )
    points = []
    for values in itertools.product(*axes.values()):
        chosen = dict(zip(axes, values, strict=True))
        one = recipe.override([f"{key}={_text(value)}" for key, value in chosen.items()], where=where)
        one.check_options()
        points.append(Point(label(chosen), chosen, one))
    names = [point.name for point in points]
    return [point if names.count(point.name) == 1 else _with_number(point) for point in points]


def label(values: Mapping[str, Any]) -> str:
    """Return values as one text that may be the name of a folder everywhere.

    Example:
        >>> label({"optimizer.lr": 1e-4, "task.corpus": "notes/a b.txt"})
        'optimizer.lr=0.0001,task.corpus=notes_a_b.txt'
    """
    text = ",".join(f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in values.items())
    text = re.sub(r"[^\w.,=+-]+", "_", text)
    return text if len(text) <= LONGEST_NAME else f"{text[: LONGEST_NAME - 9]}-{zlib.crc32(text.encode()):08x}"


def _with_number(point: Point) -> Point:
    """Tell points apart whose names have lost what differs."""
    number = zlib.crc32(json.dumps(dict(point.values), sort_keys=True).encode())
    return Point(f"{point.name[: LONGEST_NAME - 9]}-{number:08x}", point.values, point.recipe)


def _text(value: Any) -> str:
    """Return a value as it is written on the command line: a plain word as it stands, everything else quoted."""
    return (
        value if isinstance(value, str) and value.isidentifier() and parse_value(value) == value else json.dumps(value)
    )
