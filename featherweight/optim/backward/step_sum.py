"""What is kept of the gradients of one parameter between the micro-batches of a step.

`FullSum` keeps the sum itself, `TensorSum` the core of a tensor, `CoreSum` (`core_sum.py`) those of matrices.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from featherweight.optim.step.check import Size, sizes_of
from featherweight.optim.step.layout import Layout, Member
from featherweight.optim.step.step import Step
from featherweight.optim.step.tensor import ProjectedTensor
from featherweight.optim.step.weight_update import copy_back, rounding_of, weight_of


class CommonSketch(Protocol):
    """What several parameters with one right basis sketch together; see `featherweight.optim.backward.shared_basis`."""

    def sketch_matrix(self, layout: Layout) -> Tensor | None:
        """Return a member's rows of the matrix Omega of this step's sketch; None if no refresh is due."""

    def norm_key(self) -> tuple[int, ...]:
        """Return the key of the sketch of the norm, one for all members."""

    def add(self, sketch: Tensor) -> None:
        """Take in what a member's gradient gives to the sketch."""


class Summing(NamedTuple):
    """What a sum of gradients must know of the step that it is for."""

    is_only: bool = False
    """Whether the first gradient is the only one, so that a basis that is due may be fitted to it. Else a due refresh
    is made from a sketch, and holds from the next step on."""
    estimates_norm: bool = False
    """Whether to keep what estimates the norm of the part outside the subspace."""
    is_shared: bool = False
    """Whether other processes sum other gradients of the same parameter; nothing may be fitted to these alone."""
    brings_cores: bool = False
    """Whether gradients come as factors, of the whole matrix, also where this process holds rows of the weight."""
    common: CommonSketch | None = None
    """Where the sketch of a right basis goes that the parameter shares with others; they refresh it together."""


class StepSum(Protocol):
    """The sum of the gradients of one parameter over the micro-batches of a step, or what is kept of it."""

    def add(self, grad: Tensor) -> None:
        """Take in the gradient of one micro-batch; it may be kept and changed."""

    def squared_norm(self) -> float:
        """Return the squared norm of the sum; not a finite number if the sum cannot be used."""

    def shared_tensors(self) -> Sequence[Tensor]:
        """Return what is to be averaged over the processes, in place: real, contiguous, of equal shapes on all."""

    def update_(self, factor: float) -> int:
        """Make the step of the parameter.

        Args:
            factor: of the gradient, from clipping.
        Returns:
            Number of matrices (or tensors) that were left out because their sum is not finite.
        """

    def tensors(self) -> Iterable[Tensor]:
        """Yield all tensors that are kept."""


class RowSum(StepSum, Protocol):
    """A sum of a parameter of which every process holds some rows; what it says of itself is agreed on."""

    def row_tensors(self) -> Sequence[Tensor]:
        """Return what is to be averaged over the processes, and of which this process then needs its rows alone."""

    def take_rows(self, rows: Sequence[Tensor]) -> None:
        """Go on with the rows of what `row_tensors` has returned."""

    def size(self) -> Size:
        """Return what this process adds to the squared norm, and whether its part can be used."""

    def agree(self, size: Size) -> None:
        """Take the norm, and the verdict, of all processes for that of this one."""


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
        if self.step.layout.shard is not None:
            return []  # its rows are those of the mean already
        self._read, self.grad = None, self.grad.resolve_conj().contiguous()
        # As pairs: backends of torch.distributed do not all take complex numbers.
        return [torch.view_as_real(self.grad) if self.grad.is_complex() else self.grad]

    def row_tensors(self) -> Sequence[Tensor]:
        """See `RowSum.row_tensors`: a gradient of all rows, as that of an int8 weight is."""
        shard = self.step.layout.shard
        return [] if shard is None or shard.rows is None or self.grad is None else [self.grad]

    def take_rows(self, rows: Sequence[Tensor]) -> None:
        """See `RowSum.take_rows`."""
        for self.grad in rows:
            self._read = None

    def size(self) -> Size:
        """See `RowSum.size`."""
        return self._known()[0]

    def agree(self, size: Size) -> None:
        """See `RowSum.agree`."""
        self._read = size, self._known()[1]

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


class TensorSum:
    """The core, and the sparse entries, of the gradients of one tensor, summed over micro-batches.

    A due refresh takes the gradient of the first micro-batch: the sum itself never exists.

    Args:
        step: of the parameter.
        member: the parameter.
        tensor: what its step needs.
    """

    def __init__(self, step: Step, member: Member, tensor: ProjectedTensor) -> None:
        self.step, self.member, self.tensor = step, member, tensor
        self.rounding = rounding_of(member.group, tensor.layout.index, tensor.counter("step") + 1)
        self.core: Tensor | None = None
        self.sparse: Tensor | None = None

    def add(self, grad: Tensor) -> None:
        """See `StepSum.add`."""
        if self.core is None and bool(grad.isfinite().all()):
            self.tensor.refresh(grad)
            self.tensor.store_carried(self.rounding)
        core, sparse = self.tensor.project(grad)
        # Contiguous, as backends of torch.distributed ask for it.
        self.core = core.contiguous() if self.core is None else self.core.add_(core)
        if sparse is not None:
            self.sparse = sparse if self.sparse is None else self.sparse.add_(sparse)

    def squared_norm(self) -> float:
        """Return the squared norm of what is kept: the part outside of both branches is left out."""
        kept = [torch.linalg.vector_norm(one).double().square() for one in self.tensors()]
        return float(torch.stack(kept).sum())

    def shared_tensors(self) -> Sequence[Tensor]:
        """See `StepSum.shared_tensors`."""
        return [self.tensor.plan.pairs(one) for one in self.tensors()]

    def update_(self, factor: float) -> int:
        """See `StepSum.update_`."""
        assert self.core is not None
        if not all(bool(one.isfinite().all()) for one in self.tensors()):
            return 1
        sparse = None if self.sparse is None else self.sparse * factor
        weight = weight_of(self.member.parameter)
        assert isinstance(weight, Tensor)
        self.tensor.update_(weight, self.core * factor, sparse, self.rounding)
        copy_back(self.member.parameter, weight)
        self.step.ran = self.tensor.layout.inner_rule(self.member.group).words
        return 0

    def tensors(self) -> Iterable[Tensor]:
        """See `StepSum.tensors`."""
        return [one for one in (self.core, self.sparse) if one is not None]
