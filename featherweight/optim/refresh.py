"""Which side of a matrix is projected, when its basis is refreshed, and how.

Shapes: gradient (M, N), rank R; left basis (M, R), right basis (N, R).
Source: GaLore, arXiv 2403.03507, section 4; the schedule over steps is ours.
"""

from typing import Literal

from torch import Generator, Tensor

from featherweight.errors import ConfigError, did_you_mean
from featherweight.linalg.basis import fit_left_basis
from featherweight.linalg.subspace import MatrixSubspace

Side = Literal["left", "right", "both"]
SIDES: tuple[Side, ...] = ("left", "right", "both")
PROJ_TYPES = ("std", "reverse_std", "left", "right", "full", "min_memory")


def choose_side(rows: int, columns: int, proj_type: str) -> Side:
    """Decide the side from the shape of the weight, once and for all.

    Args:
        rows: M.
        columns: N.
        proj_type: galore-torch's names. `std` puts the basis on the smaller side (right for a square matrix),
            `reverse_std` on the larger one. `min_memory` starts as `std`; see `cheaper_side`.
    Raises:
        ConfigError: if `proj_type` is unknown.
    Source: arXiv 2403.03507 and galore-torch 1.0. Differs from the official code: the side never depends on the shape
        of the core, which made `reverse_std` fail for R >= M on wide matrices.
    """
    tall = rows >= columns
    if proj_type in ("std", "min_memory"):
        return "right" if tall else "left"
    if proj_type == "reverse_std":
        return "left" if tall else "right"
    if proj_type == "full":
        return "both"
    if proj_type == "left":
        return "left"
    if proj_type == "right":
        return "right"
    raise ConfigError(
        f"param group: proj_type={proj_type!r} is unknown; expected one of {', '.join(PROJ_TYPES)}. "
        f"{did_you_mean(proj_type, PROJ_TYPES)}"
    )


def cheaper_side(side: Side, left_bytes: int, right_bytes: int) -> Side | None:
    """Return the other side if it needs fewer bytes, else None."""
    if side == "left" and right_bytes < left_bytes:
        return "right"
    if side == "right" and left_bytes < right_bytes:
        return "left"
    return None


def fit_subspace(
    grad: Tensor, side: Side, rank: int, method: str, *, old: MatrixSubspace | None, generator: Generator
) -> MatrixSubspace:
    """Fit the basis (or both bases) of a gradient.

    Args:
        grad: (M, N) finite float. Not modified.
        side: which side gets a basis.
        rank: R.
        method: see `featherweight.linalg.basis.fit_left_basis`.
        old: the present subspace, where a warm method starts.
        generator: source of every random number.
    Returns:
        Subspace with float32 (float64 for a float64 gradient) orthonormal bases.
    """
    if method == "subspace_iteration" and old is None:
        method = "auto"  # a warm method needs a start
    left = right = None
    if side in ("left", "both"):
        left = fit_left_basis(grad, rank, method, old=old.left if old else None, generator=generator)
    if side in ("right", "both"):
        right = fit_left_basis(grad.mT, rank, method, old=old.right if old else None, generator=generator)
    return MatrixSubspace(left=left, right=right)


def first_refresh(index: int, count: int, gap: int, stagger: bool) -> int:
    """Return the step at which matrix `index` of `count` refreshes for the second time; its first refresh is at step 0.

    With `stagger` the refreshes are spread evenly over the gap, so that every step costs the same: matrix i refreshes
    when
    ``(step + floor(i * gap / count)) % gap == 0``.

    Example:
        >>> [first_refresh(i, 4, 200, stagger=True) for i in range(4)]
        [200, 150, 100, 50]
    """
    return gap - (index * gap) // count if stagger else gap
