"""`solve`: the inverse questions. How long a sequence, how large a micro-batch or rank, how small a card is enough?"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from os import PathLike
from typing import Any, Literal, get_args

import torch

from featherweight.errors import LISTED, ConfigError, did_you_mean
from featherweight.planner.host import HostNeed, host_limit, host_need, require_host
from featherweight.planner.need import Need, need_of, smallest_need_of
from featherweight.planner.target import Target
from featherweight.training.estimate import estimate_memory, skeleton_of, with_model
from featherweight.training.recipe import Recipe, RecipeSource, load_recipe

Unknown = Literal["max_seq_len", "micro_batch", "rank", "min_memory"]
UNKNOWNS: tuple[Unknown, ...] = get_args(Unknown)
"""What can be asked for."""
_SEQUENCE_STEP = 128
_LARGEST = 2**24
_FULL = 10**12


@dataclass(frozen=True)
class Solution:
    """An answer, with the recipe in which it holds."""

    unknown: Unknown
    """What was asked for."""
    value: int
    """The answer: tokens, rows, a rank, or bytes."""
    recipe: Recipe
    """The recipe with this value."""
    need: Need
    """What it takes of the device."""
    host: HostNeed | None = None
    """What it takes of the host, where that has a budget."""


def solve(
    unknown: Unknown,
    model: Any,
    recipe: RecipeSource,
    budget: str | int | None = None,
    *,
    device: str | torch.device | None = None,
    calibration: str | PathLike[str] | None = None,
    host_memory: str | int | None = None,
) -> Solution:
    """Find the largest value of one setting of a recipe that fits a budget, or the smallest budget of the recipe.

    Args:
        unknown: max_seq_len (a multiple of 128 tokens), micro_batch (rows at once), rank (of a low-rank optimizer), or
            min_memory (bytes of a device that suffices, margin included).
        model: as for `fw.plan`; None takes the recipe's.
        recipe: everything else.
        budget: as for `fw.plan`; not used by min_memory, unless it says which card is meant.
        device: as for `fw.plan`.
        calibration: as for `fw.plan`.
        host_memory: a second budget, for what waits on the host under ``schedule.order=layer``; None does not look.
    Raises:
        ConfigError: if the question is unknown, or not even the smallest value fits.
    Cost: some ten simulations.
    """
    check_unknown(unknown)
    base = with_model(load_recipe(recipe), model)
    if unknown == "min_memory":
        target = Target.of("24GiB" if budget is None and device is None else budget, device, calibration=calibration)
        need = smallest_need_of(estimate_memory(None, base, device=target.device), target)
        return Solution(unknown, int(need.total_bytes / (1 - target.margin)) + 1, base, need)
    target = Target.of(budget, device, calibration=calibration)
    key, smallest, largest, step = _range(unknown, base)

    def at(value: int) -> tuple[Recipe, Need]:
        changed = base.override([f"{key}={value}"])
        return changed, _need(changed, target)

    def filled(value: int) -> int:
        """Return how full the fuller of both memories is, in parts of `_FULL`."""
        changed, need = at(value)
        share = need.total_bytes / target.usable_bytes
        if host_memory is not None:
            share = max(share, host_need(changed).total_bytes / host_limit(host_memory))
        return math.ceil(share * _FULL)

    value = largest_within(filled, _FULL, smallest, largest, step)
    if value is None:
        require_host(base.override([f"{key}={smallest}"]), host_memory)
        needed = at(smallest)[1].total_bytes
        raise ConfigError(
            f"solve: {key}={smallest} already needs {needed / 2**30:.2f} GiB of {target.usable_bytes / 2**30:.2f}; "
            "expected a recipe that fits for some value. Ask fw plan for a leaner recipe."
        )
    changed, need = at(value)
    return Solution(unknown, value, changed, need, None if host_memory is None else host_need(changed))


def check_unknown(unknown: str) -> None:
    """Raise ConfigError if this is nothing to ask for."""
    if unknown not in UNKNOWNS:
        raise ConfigError(
            f"solve: unknown={unknown!r} cannot be solved for; expected one of {', '.join(UNKNOWNS)}. "
            f"{did_you_mean(str(unknown), UNKNOWNS, otherwise=LISTED)}"
        )


def largest_within(bytes_at: Callable[[int], int], limit: int, smallest: int, largest: int, step: int) -> int | None:
    """Return the largest of smallest, smallest + step, ... <= largest whose bytes stay within a limit.

    The bytes grow along straight pieces; each try is where the line through the last two tries meets the limit.

    Args:
        bytes_at: the bytes of a value; they do not fall.
        limit: the most that is allowed.
        smallest: first value.
        largest: no value beyond it.
        step: between values.
    Returns:
        The value, or None if not even the smallest fits.
    Example:
        >>> largest_within(lambda value: 100 + 3 * value, 10_000, 128, 2**20, 128)
        3200
    """
    fits, low_bytes = 0, bytes_at(smallest)  # in steps from `smallest`
    if low_bytes > limit:
        return None
    beyond = (largest - smallest) // step + 1
    slope = 0.0
    while beyond - fits > 1:
        ahead = int((limit - low_bytes) / slope) if slope > 0 else max(1, fits)
        tried = min(max(fits + 1, fits + ahead), beyond - 1)
        size = bytes_at(smallest + tried * step)
        slope = (size - low_bytes) / (tried - fits)
        if size <= limit:
            fits, low_bytes = tried, size
        else:
            beyond = tried
    return smallest + fits * step


def _range(unknown: Unknown, base: Recipe) -> tuple[str, int, int, int]:
    if unknown == "max_seq_len":
        chunks = base.schedule.chunk_tokens or 1  # no row is shorter than a chunk
        smallest = -(-chunks // _SEQUENCE_STEP) * _SEQUENCE_STEP
        return base.length_key(), smallest, skeleton_of(base).longest or _LARGEST, _SEQUENCE_STEP
    if unknown == "micro_batch":
        return "micro_batch_size", 1, 2**16, 1
    if "rank" not in type(base.optimizer_config()).model_fields:
        raise ConfigError(
            f"solve: unknown=rank does not go with optimizer={base.optimizer['name']}, which has none; expected a "
            "low-rank optimizer. Set optimizer: galore_8bit, for example."
        )
    return "optimizer.rank", 1, 2**15, 1


def _need(recipe: Recipe, target: Target) -> Need:
    return need_of(estimate_memory(None, recipe, device=target.device), target)
