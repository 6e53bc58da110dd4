"""What becomes of the part of the gradient outside the subspace.

Without a policy it is dropped, as in GaLore. A policy owns its state and its part of the step: it may correct the
gradient before it is projected, add a direction of full size, put one in the place of the core's, or choose at a
refresh what the matrix follows. Others stand in `error_feedback.py` and `full_periods.py`.
Shapes: gradient (M, N); core (R, N) behind a left basis, (M, R) behind a right one, (R, R) behind both.
"""

import math
from collections.abc import MutableMapping
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from featherweight.linalg.subspace import MatrixSubspace
from featherweight.registry import Registry

MAX_GROWTH = 1.01
"""Largest ratio of the norms of two successive residual directions."""

MIN_SHARE = 0.02
"""Share of the gradient's norm below which a residual is rounding: a basis in 16 or 8 bits leaves up to 1.5 %."""

State = MutableMapping[str, Tensor]


class ServedMatrix(Protocol):
    """What a policy sees of the matrix that it serves; see `featherweight.optim.step.matrix`."""

    state: State
    group: dict[str, Any]
    passing: dict[str, Tensor]
    """What a policy hands from the refresh of a step to its update."""
    block: int | None
    index: int
    shape: tuple[int, int]
    dtype: torch.dtype
    device: torch.device

    def counter(self, name: str) -> int:
        """Return a counter."""

    def set_counter(self, name: str, value: int) -> None:
        """Set a counter."""

    def refresh_is_due(self) -> bool:
        """Say whether the next step asks for a new subspace."""

    def part_of_parameter(self, tensor: Tensor) -> Tensor:
        """Return this matrix of a tensor of the parameter's shape."""

    def read_moments(self) -> dict[str, Tensor]:
        """Return the moments."""

    def hold_moments(self, moments: dict[str, Tensor], moment_step: int) -> None:
        """Keep moments until the update stores them."""

    def core_direction(self, core: Tensor) -> Tensor:
        """Run the inner rule on a core, store its moments and return its direction."""

    def full_direction(self, grad_MN: Tensor, moments: dict[str, Tensor]) -> Tensor:
        """Run the inner rule on a gradient of full size, with moments of its own."""


class Update(NamedTuple):
    """What is written into a weight: ``lr * factor * (project_back(core) + extra)``."""

    core: Tensor | None
    """Direction in the subspace; None if `extra` is the whole update."""
    extra: Tensor | None
    """(M, N) direction of full size, or None."""
    factor: float


class ResidualPolicy:
    """Drops what lies outside of the subspace; the base of all policies."""

    is_plain = True
    """Whether the update needs nothing but the core, so that cores can be summed and updated in lists."""
    is_often_plain = False
    """Whether that holds in most steps."""
    follows_moments = False
    """Whether `carried` wants to see what a refresh does to the first moment."""
    why_whole: str | None = None
    """Why whole gradients are needed, in words."""

    def new_state(
        self, shape: tuple[int, ...], stack: tuple[int, ...], dtype: torch.dtype, device: torch.device
    ) -> State:
        """Return the zero state that the policy keeps for a parameter of `shape` with a `stack` of matrices."""
        return {}

    def passing_state(self, state: State, shape: tuple[int, ...], dtype: torch.dtype) -> State:
        """Return, on the meta device, what this state should hold for a while beside its `new_state`."""
        return {}

    def needs_gradient(self, matrix: ServedMatrix) -> bool:
        """Say whether the next update needs the whole gradient, not only its core."""
        return False

    def corrected(self, matrix: ServedMatrix, grad_MN: Tensor) -> Tensor:
        """Return what is projected in the place of a gradient."""
        return grad_MN

    def carried(
        self, matrix: ServedMatrix, before: Tensor, old: MatrixSubspace, after: Tensor, fresh: MatrixSubspace
    ) -> None:
        """Take note that a refresh has brought the first moment from one subspace into another."""

    def refreshed(self, matrix: ServedMatrix) -> None:
        """Take note that a refresh is done and the next one scheduled."""

    def update(self, matrix: ServedMatrix, core: Tensor, subspace: MatrixSubspace, grad_MN: Tensor | None) -> Update:
        """Run the inner rule and return what is written.

        Args:
            matrix: after its refresh.
            core: of this step's gradient, in the dtype of the arithmetic.
            subspace: the present one.
            grad_MN: what was projected, where `needs_gradient`.
        """
        return Update(matrix.core_direction(core), None, matrix.group["scale"])


class NormedResidual(ResidualPolicy):
    """Base of policies that make a direction of full size whose norm may grow by one per cent a step."""

    is_plain = False
    replaces_core = False
    """Whether the direction stands for the whole update, so that nothing is projected back."""

    def new_state(
        self, shape: tuple[int, ...], stack: tuple[int, ...], dtype: torch.dtype, device: torch.device
    ) -> State:
        """See `ResidualPolicy.new_state`."""
        return {"residual_norm": torch.zeros(stack, dtype=torch.float32, device=device)}

    def needs_gradient(self, matrix: ServedMatrix) -> bool:
        """See `ResidualPolicy.needs_gradient`."""
        return True

    def update(self, matrix: ServedMatrix, core: Tensor, subspace: MatrixSubspace, grad_MN: Tensor | None) -> Update:
        """See `ResidualPolicy.update`."""
        assert grad_MN is not None
        direction = matrix.core_direction(core)
        norms = matrix.state["residual_norm"]
        last_norm = norms if matrix.block is None else norms[matrix.block]
        extra = self.extra(grad_MN, core, direction, subspace, last_norm)
        return Update(None if self.replaces_core else direction, extra, self.factor(matrix.group["scale"]))

    def factor(self, scale: float) -> float:
        """Return what the whole update is multiplied with, beside lr, for the group's option `scale`."""
        return scale

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
        raise NotImplementedError


class FiraResidual(NormedResidual):
    """Scale the residual as the inner rule scaled the core, and limit the growth of its norm.

    ``S = phi * (G - P C)`` with ``phi_j = ||D_j|| / (||C_j|| + 1e-8)`` for each column j of the core behind a left
    basis (row behind a right one, one factor behind both); then ``S <- S * 1.01 ||S_last|| / ||S||`` if S grew by more.

    Source: Fira, arXiv 2410.01623, sections 4.2 and 4.3. Differs from the paper: a residual that is only rounding (a
        zero gradient, or one of rank R or less, as from an expert with few tokens) is dropped and leaves the limit as
        it is; it would hold all later residuals near zero for hundreds of steps.
    """

    why_whole = "residual=fira needs what lies outside of the subspace"

    def extra(
        self, grad: Tensor, core: Tensor, direction: Tensor, subspace: MatrixSubspace, last_norm: Tensor
    ) -> Tensor:
        """See `NormedResidual.extra`."""
        factor = _channel_ratio(core, direction, subspace)
        residual = subspace.project_back(core.neg()).add_(grad)
        exists = torch.linalg.vector_norm(residual) > MIN_SHARE * torch.linalg.vector_norm(grad)
        return _limit_growth_(residual.mul_(factor), last_norm, exists)


class ApolloResidual(NormedResidual):
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
        name = "apollo" if by_channel else "apollo_tensor"
        self.why_whole = f"residual={name} needs what lies outside of the subspace"

    def factor(self, scale: float) -> float:
        """See `NormedResidual.factor`."""
        return math.sqrt(scale)

    def extra(
        self, grad: Tensor, core: Tensor, direction: Tensor, subspace: MatrixSubspace, last_norm: Tensor
    ) -> Tensor:
        """See `NormedResidual.extra`."""
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
