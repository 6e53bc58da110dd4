"""Ranks that follow the spectrum of a tensor's first gradient: `rank="auto"`.

Everything else about a parameter follows from its shape (`layout.py`). These ranks do not, so a plan is open until the
first gradient: its shapes and bytes are then the largest that `rank_budget` allows. What was decided stands in the
state as `ranks`, so that a resumed run decides nothing anew.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from featherweight.linalg.tucker_ranks import greedy_ranks
from featherweight.optim.step.layout import Layout


def is_open(layout: Layout) -> bool:
    """Say whether the ranks of a tensor wait for its first gradient."""
    return layout.tensor is not None and layout.tensor.is_open


def settle(layout: Layout, grad: Tensor, group: Mapping[str, Any]) -> Layout:
    """Decide the ranks of an open layout.

    Args:
        layout: an open one.
        grad: of the parameter's shape, finite. Not modified.
        group: options of the parameter group.
    Returns:
        The layout with its ranks; the same one, still open, if the gradient is zero: there is nothing to follow.
    Cost: see `greedy_ranks`.
    """
    plan = layout.tensor
    assert plan is not None and plan.budget is not None
    if not grad.any():
        return layout
    return with_ranks(layout, greedy_ranks(plan.tensor_of(grad, layout.dtype), plan.budget, plan.spectral_modes), group)


def with_ranks(layout: Layout, ranks: tuple[int, ...], group: Mapping[str, Any]) -> Layout:
    """Return a layout with decided ranks.

    Moments are stored as planned for the budget, not anew by the size of the core: below some size moments stay in 32
    bits, and a core just below it would take more bytes than the budget.
    """
    assert layout.tensor is not None
    plan = replace(layout.tensor, ranks=ranks)
    return replace(layout, rank=max(ranks), tensor=plan, moment_shapes=plan.moment_shapes(group))


def restored(layout: Layout, state: Mapping[str, Tensor], group: Mapping[str, Any]) -> Layout:
    """Return an open layout with the ranks that its state has, if they fit the tensor; any other layout as it is."""
    if not is_open(layout) or "ranks" not in state:
        return layout
    assert layout.tensor is not None
    ranks, shape = tuple(state["ranks"].tolist()), layout.tensor.shape
    fits = len(ranks) == len(shape) and all(1 <= r <= n for r, n in zip(ranks, shape, strict=True))
    return with_ranks(layout, ranks, group) if fits else layout
