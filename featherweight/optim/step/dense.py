"""The step of parameters without a subspace, and the sum of whole gradients."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from featherweight.optim.step import adam
from featherweight.optim.step.finite import Size, sizes_of
from featherweight.optim.step.step import Member, Step, Summing, Together


class DenseStep(Step):
    """The inner rule on the gradient itself, with factor lr."""

    def step(
        self, member: Member, grad: Tensor, is_used: list[bool] | None = None, together: Together | None = None
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

    def begin_sum(self, member: Member, grad: Any, how: Summing) -> "FullSum":
        """See `Step.begin_sum`."""
        return FullSum(self, member)


class FullSum:
    """The sum itself, in the dtype of the gradients: as torch accumulates into ``.grad``.

    Args:
        step: what makes the step of the parameter, whatever its kind.
        member: the parameter.
    """

    def __init__(self, step: Step, member: Member) -> None:
        self.step, self.member = step, member
        self.grad: Tensor | None = None
        self._read: tuple[Size, list[bool] | None] | None = None

    def add(self, grad: Tensor) -> None:
        """See `StepSum.add`."""
        self._read = None
        self.grad = grad if self.grad is None else self.grad.add_(grad)

    def squared_norm(self) -> float:
        """See `StepSum.squared_norm`."""
        size, _ = self._known()
        return size.squared_norm if size.is_usable else float("nan")

    def _known(self) -> tuple[Size, list[bool] | None]:
        """Return norm and use of the sum, and which of its matrices are used.

        All that the host must know is read at once: each wait keeps the backward pass from running ahead.
        """
        if self._read is None:
            assert self.grad is not None
            flags = self.step.used_matrices(self.grad)
            (size,), is_used = sizes_of([self.grad], () if flags is None else (flags,))
            self._read = size, None if flags is None else is_used
        return self._read

    def shared_tensors(self) -> Sequence[Tensor]:
        """See `StepSum.shared_tensors`."""
        assert self.grad is not None
        self._read, self.grad = None, self.grad.resolve_conj().contiguous()
        # As pairs: backends of torch.distributed do not all take complex numbers.
        return [torch.view_as_real(self.grad) if self.grad.is_complex() else self.grad]

    def update_(self, factor: float) -> int:
        """See `StepSum.update_`."""
        assert self.grad is not None
        size, is_used = self._known()
        if not size.is_usable:
            return 1
        self.step.step(self.member, self.grad if factor == 1.0 else self.grad.mul_(factor), is_used)
        increment_version(self.member.parameter)  # torch's fused kernels do not; an S2FT change in place follows it
        return 0

    def tensors(self) -> Iterable[Tensor]:
        """See `StepSum.tensors`."""
        return () if self.grad is None else (self.grad,)
