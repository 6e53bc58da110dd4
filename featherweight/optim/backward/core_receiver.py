"""Where the backward pass of a linear layer leaves the core of its weight's gradient, instead of the gradient.

For ``y = x W^T`` the gradient is ``G = g^T x``, and a subspace needs of it only ``P^T G = (g P)^T x`` or
``G Q = g^T (x Q)``: thin products of what the layer has at hand. Behind a right basis it is enough to keep ``x Q``,
(T, R) instead of (T, N), for the backward pass. A `CoreSlot` says what the layer keeps, takes the factors, and adds
their core to the sum of the step (`accumulation.py`). At a refresh the new basis comes from thin products, too.
Shapes: T tokens, M rows, N columns, R rank.
Source: ours; the identity behind it is that of arXiv 2403.03507, Algorithm 2, applied before the gradient is formed.
"""

import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from featherweight.errors import ConfigError, NumericsError
from featherweight.linalg.outer_product import OuterProduct
from featherweight.optim.backward.shared_basis import SharedBasis, why_alone, why_different
from featherweight.optim.step.accumulation import CoreSum, input_test
from featherweight.optim.step.layout import Layout
from featherweight.optim.step.matrix import Group

if TYPE_CHECKING:
    from featherweight.optim.backward.layerwise import Layerwise

PREFERENCES = ("speed", "memory")
MAX_FLOP_SHARE = 0.8
"""`prefer="speed"` takes cores up to this share of the full gradient's FLOPs; thin products reach 73 to 100 % of the
speed of large ones."""


class CoreSlot:
    """The way of one parameter's cores into its optimizer; made by `Layerwise.core_slot`.

    Args:
        owner: the running layer-wise optimizer.
        parameter: weight of a linear layer.
        prefer: see `why_full`.
        exact_refresh: form the whole gradient at a step that refreshes.
    """

    def __init__(self, owner: "Layerwise", parameter: Tensor, *, prefer: str, exact_refresh: bool) -> None:
        self._owner = weakref.ref(owner)  # a graph that holds the slot holds no optimizer
        self.parameter, self.prefer, self.exact_refresh = parameter, prefer, exact_refresh
        self.shared: SharedBasis | None = None
        """The right basis that the parameter has in common with others."""
        self.alone: str | None = None
        """Why it has a basis of its own although layers read the same input; None if there is nothing to say."""
        self._judged: tuple[Layout, str | None] | None = None
        self._held: OuterProduct | None = None
        self._whole_step = -1  # the last step of which a forward pass has kept the input itself

    @property
    def owner(self) -> "Layerwise":
        """The running layer-wise optimizer.

        Raises:
            ConfigError: if it is gone.
        """
        owner = self._owner()
        if owner is None:
            raise ConfigError(
                f"layerwise: a weight {tuple(self.parameter.shape)} leaves its core to an optimizer that "
                "is gone since the forward pass; expected it to stay for both. Repeat the forward pass."
            )
        return owner

    @property
    def layout(self) -> Layout:
        """How the optimizer treats the parameter; a state that is loaded may change it."""
        return self.owner.layout_of(self.parameter)

    @property
    def reason(self) -> str | None:
        """Why this parameter gets a whole gradient; None if it gets cores."""
        hooks = (self.parameter._post_accumulate_grad_hooks or {}).values()
        readers = sum(getattr(hook, "needs_gradient", True) for hook in hooks)
        if self.parameter._backward_hooks or readers > 1:  # one of them is the optimizer's
            return "a hook on the parameter wants the gradient"
        planned = self.owner.optimizer.layouts[self.parameter]
        if self._judged is None or self._judged[0] is not planned:  # asked before each forward pass
            self._judged = planned, why_full(planned, self.parameter.element_size(), self.prefer)
        return self._judged[1]

    @property
    def group(self) -> Group:
        """Its parameter group."""
        return self.owner.group_of(self.parameter)

    @property
    def state(self) -> Any:
        """State of the parameter; empty before its first step."""
        return self.owner.optimizer.state[self.parameter]

    def is_open(self) -> bool:
        """Say whether the next forward pass should leave a core."""
        if self.reason is not None:
            return False
        layout = self.owner.optimizer.layouts[self.parameter]
        if layout.alternative is not None and (not self.state or "trial_basis" in self.state):
            return False  # min_memory has not chosen its side
        return not (self.exact_refresh and self._is_due())

    def product(self, x: Tensor, cast_x: Tensor) -> Tensor | None:
        """Return the product with the layer's input that is to be kept instead of it; None to keep the input.

        Args:
            x: (..., N) as the layer got it.
            cast_x: x in the dtype of the product.
        """
        step = int(self.state["step"].max()) if self.state else 0
        if step == self._whole_step:  # a repeated forward pass must keep what the first one did
            return None
        product = self._thin(x, cast_x)
        if product is None:
            self._whole_step = step
        return product

    def _thin(self, x: Tensor, cast_x: Tensor) -> Tensor | None:
        total = self.owner.sum_of(self.parameter)
        if not self.state or (total is not None and total.is_sketched):
            return None
        if self.shared is not None:
            return self.shared.product(x, cast_x)
        _, matrices = self.owner.matrices(self.parameter, None)
        test = input_test(matrices[0], probe_norm=self.owner.probes_norm)
        return None if test is None else cast_x @ test.to(cast_x.dtype)

    def version(self) -> int:
        """Return a number that changes when the subspace does."""
        return int(self.state["refresh_count"].sum()) if self.state else 0

    def add(self, left_TM: Tensor, right_TN: Tensor) -> None:
        """Take in the gradient ``left^T right``."""
        factors = OuterProduct(left_TM, right_TN)
        with self.owner.receiving(self.parameter):
            total = self.owner.sum_of(self.parameter)
            may_hold = self.owner.is_single and self.shared is None
            if total is None and self._held is None and may_hold and self._is_due():
                self._held = factors  # if nothing else comes, it is the gradient that the new basis is fitted to
                return
            if total is None:
                total = self._begin(self._held or factors, is_only=False)
            total.add(factors)

    def add_thin(self, left_TM: Tensor, thin_TK: Tensor, version: int) -> None:
        """Take in the gradient ``left^T x``, of which ``thin = product(x)`` is left.

        Raises:
            NumericsError: if the subspace has changed since `version`.
        """
        if version != self.version():
            raise NumericsError(
                f"optimizer: the subspace of '{self.layout.name}' has changed between a forward pass and its backward "
                "pass; expected no optimizer step in between. Run forward and backward of a batch in turn."
            )
        with self.owner.receiving(self.parameter):
            total = self.owner.sum_of(self.parameter) or self._begin(None, is_only=False)
            total.add_thin(left_TM, thin_TK)

    def take_held(self) -> OuterProduct | None:
        """Return what was held back and hold it no more."""
        held, self._held = self._held, None
        return held

    def complete(self) -> None:
        """Take note that this backward pass brings no more; a gradient that was held back is the only one."""
        if self._held is not None:
            self._begin(self._held, is_only=True)

    def discard(self) -> None:
        """Drop what is held."""
        self._held = None

    def _begin(self, first: OuterProduct | None, *, is_only: bool) -> CoreSum:
        held = self.take_held()
        total = self.owner.begin_sum(self.parameter, first, is_only=is_only)
        assert isinstance(total, CoreSum), "a slot is closed for policies that need whole gradients"
        if held is not None:
            total.add(held)
        return total

    def describe(self) -> str:
        """Return in words what becomes of the parameter's gradient."""
        if self.reason is not None:
            return self.reason
        if self.shared is None:
            return f"core, {self.layout.side} basis" + (f" of its own: {self.alone}" if self.alone else "")
        return f"core, right basis of {len(self.shared.parameters)} weights with the same input"

    def _is_due(self) -> bool:
        if self.layout.seeded_basis is not None:
            return False
        return not self.state or bool((self.state["step"] >= self.state["next_refresh"]).any())


def share_basis(slots: Sequence[CoreSlot]) -> None:
    """Give one right basis to those of some parameters that can share it; the others note why not.

    Args:
        slots: of weights whose layers read the same input; all of one owner.
    """
    members: list[CoreSlot] = []
    for slot in slots:
        slot.alone = why_alone(slot.layout) if slot.reason is None else slot.reason
        if slot.alone is None and members:
            slot.alone = why_different(slot.layout, members[0].layout)
            if slot.parameter.device != members[0].parameter.device:
                slot.alone = f"it is on device={slot.parameter.device}"
            if slot.group is not members[0].group:
                slot.alone = f"it is not in the parameter group of '{members[0].layout.name}'"
        if slot.alone is None:
            members.append(slot)
    if len(members) == 1:
        members[0].alone = "no other weight with its input can share"
    elif members:
        shared = SharedBasis(members[0].owner, [slot.parameter for slot in members])
        for slot in members:
            slot.shared = shared


def why_full(layout: Layout, element_bytes: int, prefer: str) -> str | None:
    """Return why a parameter's gradient is formed; None if only its core is.

    The core takes ``2*T*R*(M + N)`` FLOPs, the gradient ``2*T*M*N``: with `prefer="speed"` the core must take at most
    `MAX_FLOP_SHARE` of that. With `prefer="memory"` it is enough that the core takes fewer bytes than the gradient.

    Args:
        layout: of the parameter.
        element_bytes: of the gradient.
        prefer: "speed" or "memory".
    """
    if layout.rank is None:
        return "keeps full-rank moments"
    if layout.residual is not None:
        return f"residual={layout.residual} needs what lies outside of the subspace"
    if layout.error_feedback:
        return "error feedback needs what lies outside of the subspace"
    if layout.has_full_periods:
        return "periods of full rank need whole gradients"
    if layout.seeded_basis == "gaussian":
        return "a gaussian projection is not orthonormal"
    share, core_bytes, gradient_bytes = costs(layout, element_bytes)
    if prefer == "speed" and share > MAX_FLOP_SHARE:
        return f"a core takes {share:.0%} of the FLOPs"
    if prefer == "memory" and core_bytes >= gradient_bytes:
        return f"a core takes {core_bytes / gradient_bytes:.0%} of the bytes"
    return None


def costs(layout: Layout, element_bytes: int) -> tuple[float, int, int]:
    """Return the core's share of the FLOPs of a gradient, the bytes of the core, and those of the gradient."""
    rows, columns = layout.core_shape
    blocks = layout.blocks or 1
    size = layout.rows * layout.columns
    assert layout.rank is not None
    core_bytes = blocks * rows * columns * layout.dtype.itemsize
    return layout.rank * (layout.rows + layout.columns) / size, core_bytes, blocks * size * element_bytes
