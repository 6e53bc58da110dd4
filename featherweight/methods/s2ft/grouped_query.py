"""Orders of attention heads that put chosen heads side by side, with grouped queries too.

With H query heads in G groups of R that share keys and values, only two kinds of orders leave the function as it is:
any
order of the groups, and any order of the query heads inside a group. Chosen heads become one run if at most two groups
are partly chosen: one ends the run, one begins it. With more such groups no order does, and heads are gathered instead.
Source: arXiv 2412.06289, section 3.1. Differs from the official code, which handles H == G alone and fails otherwise.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from featherweight.errors import ConfigError


@dataclass(frozen=True)
class HeadPlan:
    """An order of heads; position -> head as the model has it."""

    groups: tuple[int, ...]
    """Order of the groups of keys and values."""
    queries: tuple[int, ...]
    """Order of the query heads; those of a group stay together."""
    start: int
    """Position of the first chosen query head."""
    stop: int
    """Position behind the last one."""


def plan_heads(chosen: Sequence[int], num_heads: int, num_groups: int) -> HeadPlan | None:
    """Return an order in which the chosen query heads are one run, or None if there is none: gather them then.

    Args:
        chosen: query heads, 0 <= head < num_heads.
        num_heads: H.
        num_groups: G, divides H.
    Raises:
        ConfigError: if the numbers do not fit.
    Example:
        >>> plan = plan_heads([1, 2, 3, 4], num_heads=6, num_groups=3)
        >>> plan.queries[plan.start:plan.stop]
        (1, 2, 3, 4)
        >>> plan_heads([0, 2, 4], num_heads=6, num_groups=3) is None
        True
    """
    if num_groups < 1 or num_heads % num_groups or not set(chosen) <= set(range(num_heads)):
        raise ConfigError(
            f"plan_heads: chosen={list(chosen)} does not fit {num_heads} heads in {num_groups} groups; expected "
            f"heads below {num_heads} and a number of groups that divides it. Correct the numbers."
        )
    size = num_heads // num_groups
    wanted = set(chosen)
    inside = {group: [h for h in range(group * size, (group + 1) * size) if h in wanted] for group in range(num_groups)}
    full = [group for group, heads in inside.items() if len(heads) == size]
    partial = [group for group, heads in inside.items() if 0 < len(heads) < size]
    if len(partial) > 2:
        return None
    rest = [group for group, heads in inside.items() if not heads]
    # One partly chosen group alone stands in front: its chosen heads then end it and begin the run.
    front, back = partial[:1], partial[1:]
    groups = [*front, *full, *back, *rest]
    queries: list[int] = []
    for group in groups:
        heads = range(group * size, (group + 1) * size)
        others = [head for head in heads if head not in wanted]
        queries += [*others, *inside[group]] if group in front else [*inside[group], *others]
    start = size - len(inside[front[0]]) if front else 0
    return HeadPlan(tuple(groups), tuple(queries), start, start + len(wanted))


def channel_order(units: Sequence[int], size: int) -> Tensor:
    """Return the order of channels that an order of units of `size` channels makes; (units * size,) int64.

    Example:
        >>> channel_order([1, 0], 2).tolist()
        [2, 3, 0, 1]
    """
    return (torch.tensor(list(units), dtype=torch.int64)[:, None] * size + torch.arange(size)).flatten()
