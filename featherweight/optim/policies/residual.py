"""What becomes of the part of the gradient outside the subspace.

Without a policy it is dropped, as in GaLore. A policy returns a full-size direction that is added to the projected-back
one, or replaces it, before the whole is scaled; it costs one float32 temporary of the size of the gradient.
Shapes: gradient (M, N); core (R, N) behind a left basis, (M, R) behind a right one, (R, R) behind both.
"""

import math
from typing import Protocol

import torch
from torch import Tensor

from featherweight.linalg.subspace import MatrixSubspace
from featherweight.registry import Registry

MAX_GROWTH = 1.01
"""Largest ratio of the norms of two successive residual directions."""

MIN_SHARE = 0.02
"""Share of the gradient's norm below which a residual is rounding: a basis in 16 or 8 bits leaves up to 1.5 %."""


class ResidualPolicy(Protocol):
    """Makes a direction of the gradient's size from the gradient and what the inner rule made of its core."""

    replaces_core: bool
    """Whether the direction stands for the whole update, so that nothing is projected back."""

    def factor(self, scale: float) -> float:
        """Return what the whole update is multiplied with, beside lr, for the group's option `scale`."""
        ...

    def extra(
        self, grad: Tensor, core: Tensor, direction: Tensor, subspace: MatrixSubspace, last_norm: Tensor
    ) -> Tensor:
        """Return the extra direction.

        Args:
            grad: (M, N) gradient.
            core: its projection.
            direction: what the inner rule made of the core.
            subspace: bases of the projection.
            last_norm: float32 scalar, norm of the last extra direction, 0 before the first; updated in place.
        Returns:
            (M, N) float32, or float64 for a float64 gradient.
        """
        ...


class FiraResidual:
    """Scale the residual as the inner rule scaled the core, and limit the growth of its norm.

    ``S = phi * (G - P C)`` with ``phi_j = ||D_j|| / (||C_j|| + 1e-8)`` for each column j of the core behind a left
    basis (row behind a right one, one factor behind both); then ``S <- S * 1.01 ||S_last|| / ||S||`` if S grew by more.

    Source: Fira, arXiv 2410.01623, sections 4.2 and 4.3. Differs from the paper: a residual that is only rounding (a
        zero gradient, or one of rank R or less, as from an expert with few tokens) is dropped and leaves the limit as
        it is; it would hold all later residuals near zero for hundreds of steps.
    """

    replaces_core = False

    def factor(self, scale: float) -> float:
        """See `ResidualPolicy.factor`."""
        return scale

    def extra(
        self, grad: Tensor, core: Tensor, direction: Tensor, subspace: MatrixSubspace, last_norm: Tensor
    ) -> Tensor:
        """See `ResidualPolicy.extra`."""
        factor = _channel_ratio(core, direction, subspace)
        residual = subspace.project_back(core.neg()).add_(grad)
        exists = torch.linalg.vector_norm(residual) > MIN_SHARE * torch.linalg.vector_norm(grad)
        return _limit_growth_(residual.mul_(factor), last_norm, exists)


class ApolloResidual:
    """Scale the raw gradient by how much the inner rule scaled its core; nothing is projected back.

    ``S = s * G`` with ``s_j = ||D_j|| / (||C_j|| + 1e-8)`` for each column j of the core behind a left basis (row
    behind a right one), or one ``s = ||D|| / (||C|| + 1e-8)`` for the whole matrix; then the limit of growth as in
    Fira. The update is ``sqrt(scale) * S``.

    Source: APOLLO, arXiv 2412.05270, section 4. The limit acts on ratios of norms, so it is the same before and after
        the factor (apollo-torch's `scale_front`).

    Args:
        by_channel: one factor for each channel, or one for the matrix (APOLLO-Mini).
    """

    replaces_core = True

    def __init__(self, by_channel: bool) -> None:
        self.by_channel = by_channel

    def factor(self, scale: float) -> float:
        """See `ResidualPolicy.factor`."""
        return math.sqrt(scale)

    def extra(
        self, grad: Tensor, core: Tensor, direction: Tensor, subspace: MatrixSubspace, last_norm: Tensor
    ) -> Tensor:
        """See `ResidualPolicy.extra`."""
        if self.by_channel:
            factor = _channel_ratio(core, direction, subspace)
        else:
            factor = torch.linalg.vector_norm(direction) / torch.linalg.vector_norm(core).add_(1e-8)
        # Converted first: one factor for a matrix has no dimension, and torch would then compute in 16 bits.
        scaled = grad.to(core.dtype, copy=True).mul_(factor)
        return _limit_growth_(scaled, last_norm, scaled.any())


def _channel_ratio(core: Tensor, direction: Tensor, subspace: MatrixSubspace) -> Tensor:
    """Return ``||D_j|| / (||C_j|| + 1e-8)`` over the rank: a row behind a left basis, a column behind a right one."""
    if subspace.left is not None and subspace.right is not None:
        dims: tuple[int, ...] = (0, 1)
    else:
        dims = (0,) if subspace.right is None else (1,)
    ratio = torch.linalg.vector_norm(direction, dim=dims, keepdim=True)
    return ratio.div_(torch.linalg.vector_norm(core, dim=dims, keepdim=True).add_(1e-8))


def _limit_growth_(direction: Tensor, last_norm: Tensor, exists: Tensor) -> Tensor:
    """Shorten a direction to `MAX_GROWTH` times the last norm, in place; zero it where it does not exist."""
    norm = torch.linalg.vector_norm(direction)
    limit = torch.where(last_norm > 0, MAX_GROWTH * last_norm / norm.clamp_min(1e-30), torch.ones_like(norm))
    limit.clamp_(max=1)
    last_norm.copy_(torch.where(exists, norm * limit, last_norm))
    return direction.mul_(limit * exists)


residual_policies: Registry[ResidualPolicy] = Registry("residual")
residual_policies.register("fira", FiraResidual())
residual_policies.register("apollo", ApolloResidual(by_channel=True))
residual_policies.register("apollo_tensor", ApolloResidual(by_channel=False))
