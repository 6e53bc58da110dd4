"""What the optimizer does with one parameter: the protocol that `DenseStep`, `MatrixStep` and `TensorStep` fill.

`LowRankOptimizer` plans one `Step` for each parameter (`plan.py`) and knows no more of it than stands here.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from featherweight.errors import CheckpointError
from featherweight.linalg.subspace import MatrixSubspace
from featherweight.optim.state import State
from featherweight.optim.step.layout import Layout
from featherweight.quant.int8_weight import Int8Weight

Group = dict[str, Any]


class Member(NamedTuple):
    """One parameter with what belongs to it in the optimizer."""

    parameter: Tensor
    state: State
    """Empty before its first step."""
    group: Group
    position: tuple[int, int] = (0, 1)
    """Position of its first matrix among all projected ones, by which refreshes are staggered, and their number."""


class Together(Protocol):
    """Takes in what can be updated together with other parameters; see `together.py`."""

    def add_dense(self, member: Member, grad: Tensor) -> None:
        """Take in a parameter whose update torch's fused kernel computes."""

    def add_matrix(self, matrix: Any, weight_MN: Tensor | Int8Weight, core: Tensor, subspace: MatrixSubspace) -> bool:
        """Take in a matrix after its refresh, whose core may be overwritten; False if lists are no gain there."""


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


class Step(ABC):
    """What the optimizer does with one parameter.

    Args:
        layout: what is decided for the parameter.
    """

    matrix_count = 0
    """How many refreshes of its own the parameter has."""
    ran = ""
    """Words for what computed its last inner update; see `featherweight.optim.step.adam`."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout

    # ---- state

    def restore(self, state: State, group: Group, dtype: torch.dtype) -> None:  # noqa: B027 - most kinds have nothing to follow
        """Follow what a state says and shape and dtype of the weights do not: a side, ranks, the width of bases."""

    def create_state(self, member: Member) -> None:
        """Create the zero state of the parameter."""
        self.layout.create_state(member.state, member.parameter.device)

    def passing_state(self, state: State, group: Group) -> dict[str, Tensor]:
        """Return, on the meta device, those tensors that come and go and that this state should have now."""
        return {}

    def check_state(self, where: str, state: State, group: Group) -> None:
        """Compare loaded tensors with what the options would create.

        Raises:
            CheckpointError: names the parameter, the tensor, and both shapes.
        """
        expected: dict[str, Tensor] = {}
        self.layout.create_state(expected, torch.device("meta"))
        expected |= self.passing_state(state, group)
        if "grad_norm" in state:
            expected["grad_norm"] = torch.empty((), dtype=torch.float32, device="meta")
        for key in sorted(expected.keys() | state.keys()):
            have, want = state.get(key), expected.get(key)
            if have is None or want is None or have.shape != want.shape or have.dtype != want.dtype:
                raise CheckpointError(
                    f"{where}.load_state_dict: '{self.layout.name}' has {key}={_describe(have)}; "
                    f"expected {_describe(want)}. Use the rank, proj_type and bits of the run that wrote it."
                )

    def nbytes(self, state: State, group: Group) -> int:
        """Return the bytes of the whole state, exact, before the first step too."""
        passing = sum(state[key].nbytes for key in (*self.passing_state(state, group), "grad_norm") if key in state)
        return self.layout.nbytes() + passing

    # ---- update

    def waits_for_gradient(self) -> bool:
        """Say whether the layout itself waits for a first gradient that is not zero."""
        return False

    def used_matrices(self, grad: Tensor) -> Tensor | None:
        """Return which of stacked projected matrices have a gradient, as a boolean vector on its device."""
        return None

    @abstractmethod
    def step(
        self, member: Member, grad: Tensor, is_used: list[bool] | None = None, together: Together | None = None
    ) -> None:
        """Update the parameter from a finite gradient.

        Args:
            member: the parameter.
            grad: of its shape; not modified.
            is_used: for each of stacked matrices whether its gradient is not all zero; None reads it from the device.
            together: takes in what can be updated together with other parameters; None to update at once.
        """

    @abstractmethod
    def begin_sum(self, member: Member, grad: Any, how: Summing) -> StepSum:
        """Begin to sum up the gradients of the parameter over a step.

        Args:
            member: the parameter.
            grad: the first gradient, or its factors; None if it needs no basis.
            how: what the step asks of the sum.
        """

    def sum_bytes(self, estimates_norm: bool) -> int | None:
        """Return the bytes of the sum of a step without refresh; None for a sum of whole gradients."""
        return None


def _describe(tensor: Tensor | None) -> str:
    return "nothing" if tensor is None else f"{tuple(tensor.shape)} {tensor.dtype}"
