"""Rows for the fit, for the threshold and for the report: no group stands in two of them."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from featherweight.errors import ConfigError

SHARES = {"fit": 0.6, "calibrate": 0.2, "test": 0.2}
"""Of the rows of each class."""


@dataclass
class Rows:
    """All prompts of a calibration, those in frames included."""

    messages: list[Any] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)
    """harmful, benign or borderline"""
    parts: list[str] = field(default_factory=list)
    """fit, calibrate, test or framed"""
    categories: list[str] = field(default_factory=list)

    def where(self, part: str, *kinds: str) -> Tensor:
        """Return which rows these are: (N,) bool."""
        return torch.tensor([p == part and k in kinds for p, k in zip(self.parts, self.kinds, strict=True)])

    def add(self, message: Any, key: str, kind: str, part: str, category: str) -> None:
        """Add a row."""
        self.messages.append(message)
        self.keys.append(key)
        self.kinds.append(kind)
        self.parts.append(part)
        self.categories.append(category)


def split_rows(groups: Sequence[str], seed: int, where: str) -> dict[str, list[int]]:
    """Return which rows each part gets.

    Args:
        groups: of the rows; "" is a row of its own.
        seed: of the order.
        where: what the rows are, for messages.

    Raises:
        ConfigError: if a part would stay empty, as when all rows are of one group.

    Example:
        >>> parts = split_rows(["a", "a", "b", "c", "d", "e"], 0, "rows")
        >>> sorted(sum(parts.values(), []))
        [0, 1, 2, 3, 4, 5]
    """
    by_group: dict[str, list[int]] = {}
    for row, group in enumerate(groups):
        by_group.setdefault(group or f"row {row}", []).append(row)
    names = sorted(by_group)
    random.Random(seed).shuffle(names)
    # Large groups first, each to the part that lacks most of its share.
    names.sort(key=lambda name: -len(by_group[name]))
    parts: dict[str, list[int]] = {name: [] for name in SHARES}
    for name in names:
        lacking = {part: share * len(groups) - len(parts[part]) for part, share in SHARES.items()}
        parts[max(lacking, key=lambda part: lacking[part] / SHARES[part])] += by_group[name]
    if not all(parts.values()):
        raise ConfigError(
            f"guard calibrate: {where} are of groups={len(by_group)}, too few for the parts of fit, calibration and "
            "report; expected 3 groups or more. Leave grouped_by out, or add rows of other groups."
        )
    return {part: sorted(rows) for part, rows in parts.items()}


def refuse_leakage(parts: dict[str, list[int]], keys: Sequence[str]) -> None:
    """Refuse rows that stand in two parts.

    Raises:
        ConfigError: naming the parts.
    """
    seen: dict[str, str] = {}
    for part, rows in parts.items():
        for row in rows:
            if seen.setdefault(keys[row], part) != part:
                raise ConfigError(
                    f"guard calibrate: a prompt stands in {seen[keys[row]]} and in {part}; expected each in one part. "
                    "Remove duplicates."
                )
