"""Learning rates of parts of a model: groups at a multiple of the base rate, which may change while a schedule runs."""

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from featherweight.selection import select_embeddings, select_matrices

RATE_KEYS = ("lr", "initial_lr")
"""Rates in a group: of the next step, and before the schedule."""


def scale_lr(
    groups: list[dict[str, Any]], parameters: Iterable[Tensor], lr: float, factor: float, **keys: Any
) -> list[dict[str, Any]]:
    """Move parameters into groups of their own, which run at a multiple of their group's rate.

    Args:
        groups: groups of named parameters.
        parameters: those that move; what is in no group is passed over.
        lr: rate of groups that name none.
        factor: multiplier of the rate.
        keys: further options of the new groups.
    Returns:
        New list of groups: for each given one what stays, then what moved. Empty groups are left out.
    """
    chosen = {id(parameter) for parameter in parameters}
    split = []
    for group in groups:
        inside = [(n, p) for n, p in group["params"] if id(p) in chosen]
        outside = [(n, p) for n, p in group["params"] if id(p) not in chosen]
        if outside:
            split.append({**group, "params": outside})
        if inside:
            split.append({**group, "params": inside, "lr": group.get("lr", lr) * factor, **keys})
    return split


def scale_embedding_lr(
    groups: list[dict[str, Any]], model: nn.Module, lr: float, factor: float
) -> list[dict[str, Any]]:
    """Let embeddings and output heads run at ``factor * lr``; see `scale_lr`.

    GaLore's recipes run these parameters at the full lr and the matrices at ``scale * lr``; a fair comparison gives
    AdamW the same freedom.
    """
    return scale_lr(groups, select_embeddings(model).values(), lr, factor)


def scale_matrix_lr(groups: list[dict[str, Any]], model: nn.Module, lr: float, factor: float) -> list[dict[str, Any]]:
    """Let the matrices of linear layers, factors of low rank among them, run at ``factor * lr``; see `scale_lr`."""
    return scale_lr(groups, select_matrices(model).values(), lr, factor)


def rescale_group(group: dict[str, Any], factor: float) -> None:
    """Multiply the rate of a group, the one before its schedule too; a scheduler of torch has a copy of that."""
    for key in RATE_KEYS:
        if key in group:
            group[key] = group[key] * factor
