"""The step of parameters without a subspace."""

from torch import Tensor

from featherweight.linalg.outer_product import Gradient
from featherweight.optim.step import adam
from featherweight.optim.step.layout import Member
from featherweight.optim.step.rows import step_rows_, steps_by_rows
from featherweight.optim.step.step import Step


class DenseStep(Step):
    """The inner rule on the gradient itself, with factor lr."""

    def step(
        self,
        member: Member,
        grad: Tensor,
        is_used: list[bool] | None = None,
        together: adam.TogetherInLists | None = None,
    ) -> None:
        """See `Step.step`."""
        if steps_by_rows(self.layout):
            self.step_by_rows(member, grad)
            return
        if not member.state:
            self.create_state(member)
        if not adam.fits_torch_kernel(self.layout, member, grad):
            self.ran = adam.step_dense_(self.layout, member, grad)
            return
        self.ran = adam.TORCH_FUSED
        if together is None:
            adam.step_fused_([member], [grad])
        else:
            together.add_dense(member, grad)

    def step_by_rows(self, member: Member, grad: Gradient) -> None:
        """Update a parameter whose rule looks at whole rows; its gradient may be known by its factors alone."""
        if not member.state:
            self.create_state(member)
        self.ran = step_rows_(self.layout, member, grad)
