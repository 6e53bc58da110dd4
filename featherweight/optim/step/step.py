"""What the optimizer does with one parameter: the protocol that `DenseStep`, `MatrixStep` and `TensorStep` fill.

`LowRankOptimizer` plans one `Step` for each parameter (`plan.py`) and knows no more of it than stands here.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from featherweight.errors import CheckpointError
from featherweight.optim.step.adam import TogetherInLists
from featherweight.optim.step.layout import Group, Layout, Member, State


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
        self, member: Member, grad: Tensor, is_used: list[bool] | None = None, together: TogetherInLists | None = None
    ) -> None:
        """Update the parameter from a finite gradient.

        Args:
            member: the parameter.
            grad: of its shape; not modified.
            is_used: for each of stacked matrices whether its gradient is not all zero; None reads it from the device.
            together: takes in what can be updated together with other parameters; None to update at once.
        """


def _describe(tensor: Tensor | None) -> str:
    return "nothing" if tensor is None else f"{tuple(tensor.shape)} {tensor.dtype}"
