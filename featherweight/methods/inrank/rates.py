"""The learning rate of factors: it follows the live rank, which a rate tuned for matrices does not.

For ``y = U V x`` an optimizer of Adam's kind moves every entry of a factor by about its rate, whatever the gradient. Of
one batch the moves of the K components agree in sign, so the product moves by a sum of K terms: at one rate a layer of
six times the rank learns six times as fast. With ``rate = lr * N / (3 K)``, N the smaller side, the product moves as
much at any rank; a third of the ranks has the rate of the dense matrix. (The same reasoning gives muP's 1 / fan_in.)
Measured on a byte-level Llama of width 128 whose dense matrices want 7.5e-4: the best rates of a sweep are about 3e-3
at rank 6, 1.5e-3 at 20, 1e-3 at 32 and 7.5e-4 at 42, so their product with the rank is 0.030 to 0.032 from 20 on; the
law says 0.032. At rank 6 it would say 5.3e-3, beyond what was tried, so the factor ends at 4. Beyond a third of the
ranks the rate of the dense matrix stayed better, and the factor ends at 1: with 69 of 128 live, 1.963 nats at 7.5e-4
and 2.011 at what 1 / K would say.
"""

from typing import Any

from torch import nn
from torch.optim import Optimizer

from featherweight.methods.inrank.state import growing_layer, growth_state
from featherweight.optim.group_rates import rescale_group, scale_lr
from featherweight.optim.options import RANK_LR_KEY

DENSE_SHARE = 3.0
"""Factors of 1 / 3 of the ranks run at the rate of the dense matrix."""

SMALLEST, LARGEST = 1.0, 4.0
"""Of the multiplier: the rate of the dense matrix, and what was best at the smallest rank tried, 5 % of the ranks."""


def rank_lr_factor(rank: int, rows: int, columns: int) -> float:
    """Return the multiplier of the rate of a matrix that its two factors should have.

    Args:
        rank: K, the components that train.
        rows: M of the matrix.
        columns: N of the matrix.
    Example:
        >>> [round(rank_lr_factor(rank, 128, 352), 2) for rank in (6, 16, 32, 42, 63)]
        [4.0, 2.67, 1.33, 1.02, 1.0]
    """
    return min(LARGEST, max(SMALLEST, min(rows, columns) / (DENSE_SHARE * max(rank, 1))))


def divide_groups(
    model: nn.Module, lr: float, groups: list[dict[str, Any]], fixed: float | None
) -> list[dict[str, Any]]:
    """Return parameter groups in which the factors of each growing layer have a group and a rate of their own.

    Args:
        model: after InRank was applied.
        lr: rate of groups that name none.
        groups: groups of named parameters; those of layers come last.
        fixed: multiplier at any rank; None follows the rank.
    """
    for name in growth_state(model).ranks:
        layer = growing_layer(model, name)
        factor = rank_lr_factor(layer.rank, layer.out_features, layer.in_features) if fixed is None else fixed
        groups = scale_lr(groups, (layer.U.weight, layer.V.weight), lr, factor, **{RANK_LR_KEY: factor})
    return sorted(groups, key=lambda group: RANK_LR_KEY in group)


def follow_ranks(model: nn.Module, optimizer: Optimizer) -> None:
    """Give the groups of growing layers the rate of their present rank; groups made without it stay as they are."""
    groups = [group for group in optimizer.param_groups if RANK_LR_KEY in group]
    if not groups:
        return
    layers = [growing_layer(model, name) for name in growth_state(model).ranks]
    of_factor = {id(factor.weight): layer for layer in layers for factor in (layer.U, layer.V)}
    for group in groups:
        layer = of_factor[id(group["params"][0])]
        factor = rank_lr_factor(layer.rank, layer.out_features, layer.in_features)
        if factor != group[RANK_LR_KEY]:
            rescale_group(group, factor / group[RANK_LR_KEY])
            group[RANK_LR_KEY] = factor
