"""Which side of a matrix is projected, when its basis is refreshed, and how.

Shapes: gradient (M, N), rank R; left basis (M, R), right basis (N, R).
Source: GaLore, arXiv 2403.03507, section 4; the schedule over steps is ours.
"""

from typing import Any

import torch
from torch import Generator, Tensor

from featherweight.errors import LISTED, ConfigError, did_you_mean
from featherweight.linalg.basis import fit_left_basis
from featherweight.linalg.orthonormal import orthonormalize, polar_factor, well_conditioned
from featherweight.linalg.outer_product import Gradient, OuterProduct
from featherweight.linalg.random import random_orthonormal
from featherweight.linalg.subspace import MatrixSubspace
from featherweight.optim.policies.sides import PROJ_TYPES, Side

SEEDED_METHODS = ("random", "gaussian")
"""Basis methods that do not look at the gradient: the state keeps no basis, it is drawn anew from the seed."""
EARLY_STEPS = (10, 25, 50, 100)
"""Additional refreshes of `early_refresh`: the gradient turns fast at first, slowly later."""


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
    smaller, larger = ("right", "left") if rows >= columns else ("left", "right")
    sides: dict[str, Any] = {"std": smaller, "min_memory": smaller, "reverse_std": larger, "full": "both"}
    sides |= {"left": "left", "right": "right"}
    if proj_type in sides:
        found: Side = sides[proj_type]
        return found
    raise ConfigError(
        f"param group: proj_type={proj_type!r} is unknown; expected one of {', '.join(PROJ_TYPES)}. "
        f"{did_you_mean(proj_type, PROJ_TYPES, otherwise=LISTED)}"
    )


def cheaper_side(side: Side, left_bytes: int, right_bytes: int) -> Side | None:
    """Return the other side if it needs fewer bytes, else None."""
    cheaper: Side = "right" if right_bytes < left_bytes else "left"
    return None if cheaper == side or left_bytes == right_bytes else cheaper


def fit_subspace(
    grad: Gradient, side: Side, rank: int, method: str, *, old: MatrixSubspace | None, generator: Generator
) -> MatrixSubspace:
    """Fit the basis (or both bases) of a gradient.

    Args:
        grad: (M, N) finite float, not modified; or its factors.
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


def draw_subspace(
    method: str,
    side: Side,
    rows: int,
    columns: int,
    rank: int,
    *,
    generator: Generator,
    dtype: torch.dtype,
    device: torch.device,
) -> MatrixSubspace:
    """Draw a subspace that depends on nothing but the generator.

    Args:
        method: "random", uniformly distributed orthonormal columns; or "gaussian", independent normal elements of
            variance 1 / R, whose projection keeps norms in expectation (arXiv 2412.05270).
        side: which side gets a basis.
        rows: M.
        columns: N.
        rank: R.
        generator: on the device of the result, so that nothing is copied; devices of one kind draw the same numbers.
        dtype: float32 or float64.
        device: of the result.
    """

    def draw(length: int) -> Tensor:
        if method == "random":
            return random_orthonormal(length, rank, generator=generator, dtype=dtype, device=device)
        return torch.randn(length, rank, generator=generator, dtype=dtype, device=device).mul_(rank**-0.5)

    left = draw(rows) if side in ("left", "both") else None
    right = draw(columns) if side in ("right", "both") else None
    return MatrixSubspace(left=left, right=right)


def smoothed_iteration(grad: Gradient, old: MatrixSubspace, mean_core: Tensor, smoothing: float) -> MatrixSubspace:
    """Make one warm iteration on a gradient that is smoothed by what the first moment remembers.

    With ``B = smoothing * project_back(mean_core) + (1 - smoothing) * grad`` the new left basis is ``qr(B (B^T P))``,
    the new right one ``qr(B^T (B Q))``, each then turned to the basis of the same span that is nearest to the old one
    (`align`). B itself is never formed: the remembered part has rank R.

    Args:
        grad: (M, N) finite float, or its factors.
        old: present subspace with orthonormal columns, one-sided.
        mean_core: bias-corrected first moment, of the core's shape.
        smoothing: in [0, 1).
    Returns:
        Subspace on the same side.
    Cost: 4*M*N*R FLOPs and about 4*R*R*max(M, N).
    Source: LDAdam, arXiv 2410.16103, Algorithm 1 (rho = smoothing). Differs from the paper: the alignment. Without it
        the columns turn within the subspace at every step (measured: mean diagonal of P'^T P 0.72 where the spans
        overlap to 0.97), which mixes the second moments; on a byte-level Llama (one seed) the loss after 100 steps was
        2.39 instead of 2.33.
    """
    if old.left is None:
        assert old.right is not None
        turned = MatrixSubspace(left=old.right)
        return MatrixSubspace(right=smoothed_iteration(grad.mT, turned, mean_core.mT, smoothing).left)
    basis_MR = old.left
    grad_MN = grad if isinstance(grad, OuterProduct) else grad.to(basis_MR.dtype)
    remembered_NR = mean_core.mT * smoothing
    other_NR = well_conditioned(remembered_NR + (1 - smoothing) * (grad_MN.mT @ basis_MR))
    sketch_MR = (1 - smoothing) * (grad_MN @ other_NR) + basis_MR @ (remembered_NR.mT @ other_NR)
    return align(MatrixSubspace(left=orthonormalize(sketch_MR)), old)


def align(fresh: MatrixSubspace, old: MatrixSubspace) -> MatrixSubspace:
    """Return the same subspace in the basis that is nearest to the old one.

    A fitted basis comes with its columns rotated among themselves, although the subspace has hardly moved. Second
    moments cannot follow such a rotation: they belong to coordinates, and mix. Of all orthonormal bases of the new
    subspace, ``P' polar(P'^T P)`` is the nearest to P.

    Args:
        fresh: orthonormal columns.
        old: of the same sides and rank.
    Returns:
        Subspace of the same span on each side.
    Cost: 2*M*R*R FLOPs for the overlap, 2*M*R*R for the rotation, 60*R^3 for the polar factor, and 6*M*R*R for
    rounding.
    Source: the orthogonal Procrustes problem, Schoenemann, Psychometrika 31 (1966).
    """

    def nearest(basis: Tensor | None, before: Tensor | None) -> Tensor | None:
        if basis is None or before is None:
            return basis
        return orthonormalize(basis @ polar_factor(basis.mT @ before.to(basis.dtype)))

    return MatrixSubspace(left=nearest(fresh.left, old.left), right=nearest(fresh.right, old.right))


def next_refresh(step: int, position: tuple[int, int], gap: int, *, stagger: bool, early: bool) -> int:
    """Return the first step after `step` at which a matrix refreshes; its first refresh is at step 0.

    With `stagger` the refreshes are spread evenly over the gap, so that every step costs the same: matrix i of `count`
    refreshes when ``(step + floor(i * gap / count)) % gap == 0``. With `early` it also refreshes at (about) the steps
    of `EARLY_STEPS` below `gap`.

    Args:
        step: steps done.
        position: of the matrix among all, and their number.
        gap: steps between refreshes.
        stagger: spread the refreshes of the matrices.
        early: refresh densely at first.

    Example:
        >>> [next_refresh(0, (i, 4), 200, stagger=True, early=False) for i in range(4)]
        [200, 150, 100, 50]
        >>> [next_refresh(s, (0, 4), 200, stagger=True, early=True) for s in (0, 10, 30, 100, 200)]
        [10, 25, 50, 200, 400]
    """
    index, count = position if stagger else (0, 1)
    regular = gap * (step // gap + 1) - (index * gap) // count
    if regular <= step:
        regular += gap
    if early:
        for before, due in zip((0, *EARLY_STEPS), EARLY_STEPS, strict=False):
            moved = due - (index * (due - before)) // count
            if step < moved < min(regular, gap):
                return moved
    return regular
