"""Lazy refresh: a matrix whose subspace stands still is refreshed less and less often.

After each refresh the new subspace is compared with the one before. Once `queue_size` comparisons in a row have a mean
of `threshold` or more, the matrix' interval is doubled; a comparison far below brings it down again.
Source: Q-GaLore, arXiv 2407.08296, section 3.3.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from featherweight.config import Config
from featherweight.errors import ConfigError

if TYPE_CHECKING:
    # Options are declared, and recipes judged, without torch.
    from torch import Tensor

    from featherweight.linalg.subspace import MatrixSubspace


class LazyRefresh(Config):
    """How the refresh interval of each matrix follows the motion of its subspace.

    Example:
        >>> LazyRefresh(max_gap=3200).threshold
        0.4
    """

    threshold: float = Field(default=0.4, gt=0, le=1)
    """Mean similarity from which an interval grows."""
    queue_size: int = Field(default=5, ge=1)
    """Similarities that are averaged."""
    gamma: float = Field(default=2.0, gt=1)
    """Factor by which an interval grows, and shrinks."""
    max_gap: int | None = Field(default=None, ge=1)
    """Longest interval in optimizer steps, if it is longer than `update_proj_gap`; None for no limit."""
    similarity: Literal["overlap", "first_vector"] = "overlap"
    """overlap: share of the old subspace that the new one contains, 0 for what chance gives and 1 for equal spans;
    signs and rotations of the columns do not matter. (A warm iteration moves a basis only as far as the gradient
    pulls, so on pure noise it stands still too.) first_vector: cosine of the first columns, without its sign (the
    paper's; it means the first singular vector with basis_method svd, gram or randomized)."""
    clear_queue: bool = True
    """Begin to average anew after an interval has grown. The official code does not: from the first time on, it
    doubles at every refresh."""
    halve: bool = True
    """Shorten the interval, down to `update_proj_gap`, when a similarity falls below half of the threshold."""


OFFICIAL = LazyRefresh(similarity="first_vector", clear_queue=False, halve=False)
"""The rule of the official code, but for the sign of the cosine, which is arbitrary there."""


def lazy_options(value: Any) -> dict[str, Any] | None:
    """Return the plain options that a parameter group keeps.

    Args:
        value: None or False for refreshes at fixed intervals, True for `LazyRefresh()`, or options.
    Raises:
        ConfigError: for anything else.
    """
    if value is None or value is False:
        return None
    if value is True:
        value = LazyRefresh()
    if isinstance(value, Mapping):
        value = LazyRefresh.parse(value, where="optimizer lazy")
    if not isinstance(value, LazyRefresh):
        raise ConfigError(
            f"optimizer: lazy={value!r} is not allowed; expected None, True or fw.optim.LazyRefresh(...). Change lazy."
        )
    return value.model_dump()


def similarity_of(fresh: "MatrixSubspace", old: "MatrixSubspace", kind: str) -> float:
    """Return how much of the old subspace the new one contains, in [0, 1]; the mean over both sides if there are two.

    ``||P'^T P||_F^2 / R`` is R / M for two random subspaces; this is moved to 0, and 1 stays 1.

    Args:
        fresh: (M, R) bases.
        old: of the same sides and rank; a basis as read from 4 bits will do.
        kind: see `LazyRefresh.similarity`.
    Cost: 2*M*R*R FLOPs a side, and one wait for the device.
    """
    pairs = [(new, one) for new, one in ((fresh.left, old.left), (fresh.right, old.right)) if new is not None]
    return sum(_similarity(new, one, kind) for new, one in pairs) / len(pairs)


def _similarity(fresh_MR: "Tensor", old_MR: "Tensor | None", kind: str) -> float:
    assert old_MR is not None
    old_MR = old_MR.to(fresh_MR.dtype)
    if kind == "first_vector":
        new, old = fresh_MR[:, 0], old_MR[:, 0]
        return min(1.0, float((new @ old).abs() / (new.norm() * old.norm()).clamp_min(1e-30)))
    rows, rank = fresh_MR.shape
    shared = float((fresh_MR.mT @ old_MR).square().sum()) / rank
    chance = rank / rows
    return min(1.0, max(0.0, (shared - chance) / (1 - chance)))


def next_gap(gap: int, similarities: Sequence[float], base: int, lazy: Mapping[str, Any]) -> tuple[int, bool]:
    """Return the interval after a refresh, and whether averaging begins anew.

    Args:
        gap: present interval.
        similarities: the latest ones, the newest last.
        base: `update_proj_gap`, the shortest interval.
        lazy: options of `LazyRefresh`.
    Example:
        >>> lazy = LazyRefresh(queue_size=2).model_dump()
        >>> next_gap(200, [0.9], 200, lazy), next_gap(200, [0.9, 0.8], 200, lazy), next_gap(800, [0.9, 0.1], 200, lazy)
        ((200, False), (400, True), (400, True))
    """
    if similarities and lazy["halve"] and similarities[-1] < lazy["threshold"] / 2:
        return max(base, int(gap / lazy["gamma"])), True
    full = len(similarities) >= lazy["queue_size"]
    if full and sum(similarities) / len(similarities) >= lazy["threshold"]:
        longer = int(gap * lazy["gamma"])
        return (longer if lazy["max_gap"] is None else max(base, min(longer, lazy["max_gap"]))), lazy["clear_queue"]
    return gap, False
