"""Error feedback: what the projection loses in one step is added to the gradient of the next (LDAdam).

It keeps a tensor of the parameter's size, and it needs whole gradients.
Source: Robert et al., arXiv 2410.16103, Algorithm 1.
"""

import torch
from torch import Tensor

from featherweight.linalg.subspace import MatrixSubspace
from featherweight.optim.policies.residual import ResidualPolicy, ServedMatrix, State, Update

_LOST = "momentum outside the new subspace"


class ErrorFeedback(ResidualPolicy):
    """Keep ``E = G - P C + b1 / (1 - b1) * (momentum that the last refresh has left outside of its subspace)``."""

    is_plain = False
    follows_moments = True
    why_whole = "error feedback needs what lies outside of the subspace"

    def new_state(
        self, shape: tuple[int, ...], stack: tuple[int, ...], dtype: torch.dtype, device: torch.device
    ) -> State:
        """See `ResidualPolicy.new_state`."""
        return {"error": torch.zeros(shape, dtype=dtype, device=device)}

    def needs_gradient(self, matrix: ServedMatrix) -> bool:
        """See `ResidualPolicy.needs_gradient`."""
        return True

    def corrected(self, matrix: ServedMatrix, grad_MN: Tensor) -> Tensor:
        """See `ResidualPolicy.corrected`."""
        return grad_MN + _error_of(matrix)

    def carried(
        self, matrix: ServedMatrix, before: Tensor, old: MatrixSubspace, after: Tensor, fresh: MatrixSubspace
    ) -> None:
        """See `ResidualPolicy.carried`."""
        beta1 = matrix.group["betas"][0]
        lost = old.project_back(before).sub_(fresh.project_back(after))
        matrix.passing[_LOST] = lost.mul_(beta1 / (1 - beta1))

    def update(self, matrix: ServedMatrix, core: Tensor, subspace: MatrixSubspace, grad_MN: Tensor | None) -> Update:
        """See `ResidualPolicy.update`."""
        assert grad_MN is not None
        error = _error_of(matrix).copy_(subspace.project_back(core.neg()).add_(grad_MN))
        if (lost := matrix.passing.pop(_LOST, None)) is not None:
            error.add_(lost)
        return Update(matrix.core_direction(core), None, matrix.group["scale"])


def _error_of(matrix: ServedMatrix) -> Tensor:
    return matrix.part_of_parameter(matrix.state["error"])
