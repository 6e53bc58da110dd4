"""What becomes of the part of the gradient outside the subspace.

Without a policy it is dropped, as in GaLore. A policy returns a full-size direction that is added to the projected-back
one before both are scaled by ``-lr * scale``; it costs one float32 temporary of the size of the gradient.
Shapes: gradient (M, N); core (R, N) behind a left basis, (M, R) behind a right one, (R, R) behind both.
"""

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
    """Makes a direction from the residual ``G - project_back(core)``."""

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

    def extra(
        self, grad: Tensor, core: Tensor, direction: Tensor, subspace: MatrixSubspace, last_norm: Tensor
    ) -> Tensor:
        """See `ResidualPolicy.extra`."""
        if subspace.left is not None and subspace.right is not None:
            dims: tuple[int, ...] = (0, 1)
        else:
            dims = (0,) if subspace.right is None else (1,)
        factor = torch.linalg.vector_norm(direction, dim=dims, keepdim=True)
        factor /= torch.linalg.vector_norm(core, dim=dims, keepdim=True).add_(1e-8)
        residual = subspace.project_back(core.neg()).add_(grad)
        exists = torch.linalg.vector_norm(residual) > MIN_SHARE * torch.linalg.vector_norm(grad)
        norm = torch.linalg.vector_norm(residual.mul_(factor))
        limit = torch.where(last_norm > 0, MAX_GROWTH * last_norm / norm.clamp_min(1e-30), torch.ones_like(norm))
        limit.clamp_(max=1)
        last_norm.copy_(torch.where(exists, norm * limit, last_norm))
        return residual.mul_(limit * exists)


residual_policies: Registry[ResidualPolicy] = Registry("residual")
residual_policies.register("fira", FiraResidual())
