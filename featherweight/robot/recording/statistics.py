"""Minimum, maximum, mean, deviation and quantiles of features, per episode and over all."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}
Statistics = dict[str, Any]
"""Name -> list of numbers, one per dimension; count -> [n]."""


def describe_rows(values: ArrayLike) -> Statistics:
    """Return the statistics of (n,) or (n, width) numbers over their rows."""
    rows = np.asarray(values, dtype=np.float64)
    rows = rows.reshape(len(rows), -1)
    result: Statistics = {
        "min": rows.min(axis=0).tolist(),
        "max": rows.max(axis=0).tolist(),
        "mean": rows.mean(axis=0).tolist(),
        "std": rows.std(axis=0).tolist(),
        "count": [len(rows)],
    }
    for name, values_at in zip(QUANTILES, np.quantile(rows, list(QUANTILES.values()), axis=0), strict=True):
        result[name] = values_at.tolist()
    return result


def describe_pictures(pictures: list[NDArray[np.uint8]]) -> Statistics:
    """Return the statistics of (H, W, 3) pictures per channel, of values from 0 to 1, shaped (3, 1, 1)."""
    pixels = np.concatenate([picture.reshape(-1, 3) for picture in pictures]) / 255.0
    result = describe_rows(pixels)
    shaped: Statistics = {key: [[[value]] for value in values] for key, values in result.items() if key != "count"}
    return {**shaped, "count": [len(pictures)]}


def pool(parts: Iterable[Mapping[str, Any]]) -> Statistics:
    """Return the statistics of all rows together, from those of parts.

    Minimum, maximum, mean and deviation are exact; quantiles are means weighted by counts, as LeRobot pools them.
    """
    parts = list(parts)
    counts = np.array([float(np.asarray(part["count"]).reshape(-1)[0]) for part in parts])
    stacked = {key: np.array([part[key] for part in parts], dtype=np.float64) for key in parts[0] if key != "count"}
    weights = (counts / counts.sum()).reshape(-1, *[1] * (stacked["mean"].ndim - 1))
    mean = (weights * stacked["mean"]).sum(axis=0)
    variance = (weights * (stacked["std"] ** 2 + (stacked["mean"] - mean) ** 2)).sum(axis=0)
    result: Statistics = {
        "min": stacked["min"].min(axis=0).tolist(),
        "max": stacked["max"].max(axis=0).tolist(),
        "mean": mean.tolist(),
        "std": np.sqrt(variance).tolist(),
        "count": [int(counts.sum())],
    }
    return result | {key: (weights * stacked[key]).sum(axis=0).tolist() for key in QUANTILES if key in stacked}


def flatten(features: Mapping[str, Statistics]) -> dict[str, Any]:
    """Return statistics as the columns of an episode's row."""
    return {f"stats/{name}/{key}": value for name, values in features.items() for key, value in values.items()}


def unflatten(row: Mapping[str, Any]) -> dict[str, Statistics]:
    """Return the statistics that stand in an episode's row."""
    found: dict[str, Statistics] = {}
    for column, value in row.items():
        if column.startswith("stats/"):
            name, key = column.removeprefix("stats/").rsplit("/", 1)
            found.setdefault(name, {})[key] = value
    return found
