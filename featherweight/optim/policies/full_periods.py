"""Periods of full rank: between some refreshes a matrix follows what its subspace leaves out (GUM).

In such a period the state holds a moment of the weight's size, and the step needs whole gradients.
Source: GUM, arXiv 2510.17802.
"""

import math

import torch
from torch import Tensor

from featherweight.linalg.random import mix_keys
from featherweight.linalg.subspace import MatrixSubspace
from featherweight.optim.policies.residual import ResidualPolicy, ServedMatrix, State, Update

_PERIOD = 16  # tells these random numbers of a matrix from its others
_MOMENT = "exp_avg_full"


class FullPeriods(ResidualPolicy):
    """Follow the complement of the subspace with probability q, the subspace with 1 - q, each for a whole period.

    The weights 1 / q and 1 / (1 - q) make the expected gradient the true one. Stacked matrices never leave their
    subspaces.
    """

    is_plain = False
    is_often_plain = True
    why_whole = "periods of full rank need whole gradients"

    def new_state(
        self, shape: tuple[int, ...], stack: tuple[int, ...], dtype: torch.dtype, device: torch.device
    ) -> State:
        """See `ResidualPolicy.new_state`."""
        return {"full_period": torch.zeros(stack, dtype=torch.int64)}

    def passing_state(self, state: State, shape: tuple[int, ...], dtype: torch.dtype) -> State:
        """See `ResidualPolicy.passing_state`."""
        if "full_period" not in state or not bool(state["full_period"].any()):
            return {}
        rows = shape[0]
        return {_MOMENT: torch.empty((rows, math.prod(shape) // rows), dtype=dtype, device="meta")}

    def needs_gradient(self, matrix: ServedMatrix) -> bool:
        """See `ResidualPolicy.needs_gradient`; a refresh that is due may begin a period."""
        return _is_full(matrix) or (matrix.group["full_rank_probability"] > 0 and matrix.refresh_is_due())

    def refreshed(self, matrix: ServedMatrix) -> None:
        """Decide whether the matrix follows its subspace or the complement until the next refresh."""
        if matrix.block is not None:
            return
        was_full = matrix.state.pop(_MOMENT, None) is not None
        group = matrix.group
        bits = mix_keys(group["seed"], matrix.index, matrix.counter("refresh_count"), _PERIOD)
        is_full = bits / 2**64 < group["full_rank_probability"]
        matrix.set_counter("full_period", int(is_full))
        if is_full:
            matrix.state[_MOMENT] = torch.zeros(matrix.shape, dtype=matrix.dtype, device=matrix.device)
        elif was_full:  # the momentum of the core stood still for a whole period
            moments = matrix.read_moments()
            for moment in moments.values():
                moment.zero_()
            matrix.hold_moments(moments, 0)

    def update(self, matrix: ServedMatrix, core: Tensor, subspace: MatrixSubspace, grad_MN: Tensor | None) -> Update:
        """See `ResidualPolicy.update`."""
        group = matrix.group
        probability, scale = group["full_rank_probability"], group["scale"]
        if not _is_full(matrix):
            if probability > 0 and matrix.block is None:
                core = core / (1 - probability)
            return Update(matrix.core_direction(core), None, scale)
        assert grad_MN is not None
        residual = subspace.project_back(core.neg()).add_(grad_MN).div_(probability)
        return Update(None, matrix.full_direction(residual, {"exp_avg": matrix.state[_MOMENT]}), scale)


def _is_full(matrix: ServedMatrix) -> bool:
    return _MOMENT in matrix.state and matrix.group["full_rank_probability"] > 0
