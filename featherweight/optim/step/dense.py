"""The step of parameters without a subspace."""

from torch import Tensor

from featherweight.optim.step import adam
from featherweight.optim.step.layout import Member
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
