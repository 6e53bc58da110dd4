"""The step of a parameter of one or several projected matrices."""

from dataclasses import replace

import torch
from torch import Tensor

from featherweight.linalg.outer_product import Gradient
from featherweight.linalg.subspace import MatrixSubspace
from featherweight.optim import state as states
from featherweight.optim.policies.refresh import SIDES
from featherweight.optim.step.core_sum import CoreSum, core_sum_bytes
from featherweight.optim.step.dense import FullSum
from featherweight.optim.step.finite import is_usable
from featherweight.optim.step.layout import MatrixLayout
from featherweight.optim.step.projected_matrix import ProjectedMatrix
from featherweight.optim.step.step import Group, Member, Step, StepSum, Summing, Together
from featherweight.optim.step.weight_update import copy_back, weight_of

FLIP_SHARE = 0.9
"""`min_memory` takes the cheaper side if it holds this share of the usual side's energy on the next batch."""


class MatrixStep(Step):
    """Refresh, projection, inner rule and write, matrix by matrix.

    Args:
        layout: on the side that its shape says.
        group: options of the parameter group.
    """

    layout: MatrixLayout

    def __init__(self, layout: MatrixLayout) -> None:
        super().__init__(layout)
        self.planned = layout
        """The layout before `proj_type="min_memory"` has chosen a side."""
        self.matrix_count = layout.count

    # ---- state

    def restore(self, state: states.State, group: Group, dtype: torch.dtype) -> None:
        """See `Step.restore`: the side that a state is on, and the width of its bases."""
        side = SIDES[int(state["side"].reshape(-1)[0])] if "side" in state else self.planned.side
        layout = self.planned if side == self.planned.side else self.planned.on_side(side, group)
        self.layout = layout.with_stored_basis(state, group, dtype)

    def passing_state(self, state: states.State, group: Group) -> dict[str, Tensor]:
        """See `Step.passing_state`."""
        passing = dict(self.layout.residual.passing_state(state, self.layout.shape, self.layout.dtype))
        if "trial_basis" in state and self.layout.alternative is not None:
            (shape,) = self.layout.on_side(self.layout.alternative, group).basis_shapes().values()
            passing["trial_basis"] = torch.empty(shape, dtype=self.layout.dtype, device="meta")
        return passing

    def side_is_open(self, state: states.State) -> bool:
        """Say whether `proj_type="min_memory"` has still to choose the side."""
        return self.planned.alternative is not None and (not state or "trial_basis" in state)

    # ---- update

    def used_matrices(self, grad: Tensor) -> Tensor | None:
        """See `Step.used_matrices`."""
        return None if self.layout.blocks is None else self.layout.used_matrices(grad)

    def matrices(self, member: Member, grad: Gradient | None = None) -> list[ProjectedMatrix]:
        """Return the matrices of the parameter; its state is created if it has none.

        Args:
            member: the parameter.
            grad: a `min_memory` parameter chooses its side with it if it is a tensor.
        """
        if not member.state:
            self.layout = self.planned
            self.create_state(member)
        if self.layout.product_dtype not in (self.layout.dtype, member.parameter.dtype):  # bfloat16 weights no more
            self.layout = replace(self.layout, product_dtype=self.layout.dtype)
        if isinstance(grad, Tensor) and "trial_basis" in member.state:
            self._settle_side(grad, member)
        first, count = member.position
        return [
            ProjectedMatrix(self.layout, member.state, member.group, number, (first + number, count))
            for number in range(self.layout.count)
        ]

    def step(
        self, member: Member, grad: Tensor, is_used: list[bool] | None = None, together: Together | None = None
    ) -> None:
        """See `Step.step`."""
        weight = weight_of(member.parameter)
        matrices = self.matrices(member, grad)
        layout = self.layout
        # A zero gradient of an only matrix is a gradient; an expert without one was not used.
        if is_used is None:
            is_used = [True] if layout.blocks is None else layout.used_matrices(grad).tolist()
        if isinstance(weight, Tensor) and not member.parameter.is_contiguous():
            together = None  # the copy is written back at the end of this call
        for matrix, weight_MN, given_MN, is_one in zip(
            matrices, layout.weights(weight), layout.matrices(grad), is_used, strict=True
        ):
            if not is_one:
                continue
            grad_MN = layout.residual.corrected(matrix, given_MN)
            matrix.refresh(grad_MN)
            core, subspace = layout.project(matrix.product_subspace(), grad_MN)
            if together is None or not together.add_matrix(matrix, weight_MN, core, subspace):
                matrix.update_(weight_MN, core, subspace, grad_MN if matrix.needs_gradient() else None)
            self.ran = matrix.ran or self.ran
        copy_back(member.parameter, weight)

    def _settle_side(self, grad: Tensor, member: Member) -> None:
        """Judge both sides of a `min_memory` parameter on a batch that neither was fitted to; start anew if it moves.

        The energy on the batch of the refresh says nothing: it is the same for both sides. A zero gradient says nothing
        about a side.
        """
        other, state = self.planned.alternative, member.state
        if other is None or not grad.any() or not is_usable(grad):
            return
        (grad_MN,) = self.layout.matrices(grad)
        basis = state.pop("trial_basis")
        trial = MatrixSubspace(left=basis) if other == "left" else MatrixSubspace(right=basis)
        present = ProjectedMatrix(self.layout, state, member.group).subspace()
        if trial.energy(grad_MN) >= FLIP_SHARE * present.energy(grad_MN):
            self.layout = self.planned.on_side(other, member.group)
            state.clear()
            self.create_state(member)

    # ---- sums

    def begin_sum(self, member: Member, grad: Gradient | None, how: Summing) -> StepSum:
        """See `Step.begin_sum`."""
        matrices = self.matrices(member, grad)
        if any(matrix.needs_gradient() for matrix in matrices):
            return FullSum(self, member)
        return CoreSum(self, member, matrices, how)

    def sum_bytes(self, estimates_norm: bool) -> int | None:
        """See `Step.sum_bytes`."""
        if not (self.layout.residual.is_plain or self.layout.residual.is_often_plain):
            return None
        return core_sum_bytes(self.layout, is_sketched=False, estimates_norm=estimates_norm)
