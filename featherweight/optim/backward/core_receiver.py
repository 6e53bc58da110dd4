"""Where the backward pass of a linear layer leaves the core of its weight's gradient, instead of the gradient.

For ``y = x W^T`` the gradient is ``G = g^T x``, and a subspace needs of it only ``P^T G = (g P)^T x`` or
``G Q = g^T (x Q)``: thin products of what the layer has at hand. Behind a right basis it is enough to keep ``x Q``,
(T, R) instead of (T, N), for the backward pass. A `CoreReceiver` says what the layer keeps, takes the factors, and adds
their core to the sum of the step (`core_sum.py`). At a refresh the new basis comes from thin products, too.
Shapes: T tokens, M rows, N columns, R rank.
Source: ours; the identity behind it is that of arXiv 2403.03507, Algorithm 2, applied before the gradient is formed.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from featherweight.errors import NumericsError
from featherweight.linalg.outer_product import OuterProduct
from featherweight.optim.backward.core_sum import CoreSum
from featherweight.optim.backward.factor_sum import joined
from featherweight.optim.backward.shared_basis import SharedBasis, why_alone, why_different
from featherweight.optim.backward.sketch import input_sketch_matrix
from featherweight.optim.backward.window import Window
from featherweight.optim.step.layout import Layout
from featherweight.optim.step.matrix import MatrixStep
from featherweight.optim.step.matrix_layout import MatrixLayout
from featherweight.optim.step.rows import takes_factors

PREFERENCES = ("speed", "memory")
MAX_FLOP_SHARE = 0.8
"""`prefer="speed"` takes cores up to this share of the full gradient's FLOPs; thin products reach 73 to 100 % of the
speed of large ones."""


class CoreReceiver:
    """The way of one parameter's cores into its optimizer; made by `Layerwise.core_receiver`.

    Args:
        window: of the running layer-wise optimizer; a graph that holds the receiver holds no optimizer.
        parameter: weight of a linear layer.
        prefer: see `why_full`.
        exact_refresh: form the whole gradient at a step that refreshes.
    """

    def __init__(self, window: Window, parameter: Tensor, *, prefer: str, exact_refresh: bool) -> None:
        self.window, self.parameter, self.prefer, self.exact_refresh = window, parameter, prefer, exact_refresh
        self.shared: SharedBasis | None = None
        """The right basis that the parameter has in common with others."""
        self.alone: str | None = None
        """Why it has a basis of its own although layers read the same input; None if there is nothing to say."""
        self._judged: tuple[Layout, str | None] | None = None
        self._held: OuterProduct | None = None
        self._whole_step = -1  # the last step of which a forward pass has kept the input itself

    @property
    def layout(self) -> Layout:
        """How the optimizer treats the parameter; a state that is loaded may change it."""
        return self.window.layout_of(self.parameter)

    @property
    def matrix_layout(self) -> MatrixLayout:
        """The layout of a parameter that gets cores."""
        layout = self.layout
        assert isinstance(layout, MatrixLayout)
        return layout

    @property
    def reason(self) -> str | None:
        """Why this parameter gets a whole gradient; None if it gets cores."""
        hooks = (self.parameter._post_accumulate_grad_hooks or {}).values()
        readers = sum(getattr(hook, "needs_gradient", True) for hook in hooks)
        if self.parameter._backward_hooks or readers > 1:  # one of them is the optimizer's
            return "a hook on the parameter wants the gradient"
        layout = self.layout
        if self._judged is None or self._judged[0] is not layout:  # asked before each forward pass
            self._judged = layout, self._why_full(layout)
        return self._judged[1]

    def _why_full(self, layout: Layout) -> str | None:
        if not takes_factors(layout, self.window.group_of(self.parameter)):
            return why_full(layout, self.parameter.element_size(), self.prefer)
        if self.window.accumulation_steps > 1 or self.window.waits_for_all or not self.window.is_alone:
            return "norms of rows are those of the whole sum"
        return None

    @property
    def _takes_factors(self) -> bool:
        """Whether the step multiplies the factors out itself, tile by tile."""
        return not isinstance(self.layout, MatrixLayout)

    @property
    def state(self) -> Any:
        """State of the parameter; empty before its first step."""
        return self.window.optimizer.state[self.parameter]

    def is_open(self) -> bool:
        """Say whether the next forward pass should leave a core."""
        if self.reason is not None:
            return False
        if self._takes_factors:
            return self.window.is_single(self.parameter)
        step = self.window.step_of(self.parameter)
        if isinstance(step, MatrixStep) and step.side_is_open(self.state):
            return False
        return not (self.exact_refresh and self._is_due())

    def product(self, x: Tensor, cast_x: Tensor) -> Tensor | None:
        """Return the product with the layer's input that is to be kept instead of it; None to keep the input.

        Args:
            x: (..., N) as the layer got it.
            cast_x: x in the dtype of the product.
        """
        if self._takes_factors:
            return None
        step = int(self.state["step"].max()) if self.state else 0
        if step == self._whole_step:  # a repeated forward pass must keep what the first one did
            return None
        product = self._thin(x, cast_x)
        if product is None:
            self._whole_step = step
        return product

    def _thin(self, x: Tensor, cast_x: Tensor) -> Tensor | None:
        total = self.window.core_sum_of(self.parameter)
        if not self.state or (total is not None and total.is_sketched):
            return None
        if self.shared is not None:
            return self.shared.product(x, cast_x)
        matrix = self.window.matrices(self.parameter)[0]
        omega = input_sketch_matrix(matrix, estimates_norm=self.window.estimates_norm)
        return None if omega is None else cast_x @ omega.to(cast_x.dtype)

    def version(self) -> int:
        """Return a number that changes when the subspace does."""
        return int(self.state["refresh_count"].sum()) if self.state else 0

    def add(self, left_TM: Tensor, right_TN: Tensor) -> None:
        """Take in the gradient ``left^T right``."""
        factors = OuterProduct(left_TM, right_TN)
        with self.window.receiving(self.parameter):
            if self._takes_factors:
                self._held = joined(self._held, factors)
                return
            total = self.window.core_sum_of(self.parameter)
            may_hold = self.window.is_single(self.parameter) and self.shared is None
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
        with self.window.receiving(self.parameter):
            total = self.window.core_sum_of(self.parameter) or self._begin(None, is_only=False)
            total.add_thin(left_TM, thin_TK)

    def take_held(self) -> OuterProduct | None:
        """Return what was held back and hold it no more."""
        held, self._held = self._held, None
        return held

    def complete(self) -> None:
        """Take note that this backward pass brings no more; a gradient that was held back is the only one."""
        if self._held is None:
            return
        if self._takes_factors:
            self.window.begin_factor_sum(self.parameter).add(self._held)
            self._held = None
        else:
            self._begin(self._held, is_only=True)

    def why_no_basis(self) -> str | None:
        """Return why there is no right basis that others could share; None if there is one."""
        layout = self.layout
        return why_alone(layout) if isinstance(layout, MatrixLayout) else "it has no basis"

    @property
    def is_waiting(self) -> bool:
        """Whether cores of this step have come."""
        return self._held is not None or self.window.core_sum_of(self.parameter) is not None

    def add_whole(self, grad: Tensor) -> None:
        """Take in a gradient of all rows beside cores of the same step."""
        total = self.window.core_sum_of(self.parameter)
        assert total is not None
        total.add(grad)

    def discard(self) -> None:
        """Drop what is held."""
        self._held = None

    def _begin(self, first: OuterProduct | None, *, is_only: bool) -> CoreSum:
        held = self.take_held()
        total = self.window.begin_sum(self.parameter, first, is_only=is_only, common=self.shared, brings_cores=True)
        assert isinstance(total, CoreSum), "a receiver is closed for policies that need whole gradients"
        if held is not None:
            total.add(held)
        return total

    def describe(self) -> str:
        """Return in words what becomes of the parameter's gradient."""
        if self.reason is not None:
            return self.reason
        if self._takes_factors:
            return "tiles of rows, from its factors"
        if self.shared is None:
            return f"core, {self.matrix_layout.side} basis" + (f" of its own: {self.alone}" if self.alone else "")
        return f"core, right basis of {len(self.shared.parameters)} weights with the same input"

    def _is_due(self) -> bool:
        if isinstance(self.layout, MatrixLayout) and self.layout.seeded_basis is not None:
            return False
        return not self.state or bool((self.state["step"] >= self.state["next_refresh"]).any())


def share_basis(receivers: Sequence[CoreReceiver]) -> None:
    """Give one right basis to those of some parameters that can share it; the others note why not.

    Args:
        receivers: of weights whose layers read the same input; all of one window.
    """
    members: list[CoreReceiver] = []
    for receiver in receivers:
        receiver.alone = receiver.reason or receiver.why_no_basis()
        if receiver.alone is None and members:
            receiver.alone = why_different(receiver.matrix_layout, members[0].matrix_layout)
            if receiver.parameter.device != members[0].parameter.device:
                receiver.alone = f"it is on device={receiver.parameter.device}"
            if receiver.window.group_of(receiver.parameter) is not members[0].window.group_of(members[0].parameter):
                receiver.alone = f"it is not in the parameter group of '{members[0].layout.name}'"
        if receiver.alone is None:
            members.append(receiver)
    if len(members) == 1:
        members[0].alone = "no other weight with its input can share"
    elif members:
        shared = SharedBasis(members[0].window, [receiver.parameter for receiver in members])
        for receiver in members:
            receiver.shared = shared


def why_full(layout: Layout, element_bytes: int, prefer: str) -> str | None:
    """Return why a parameter's gradient is formed; None if only its core is.

    The core takes ``2*T*R*(M + N)`` FLOPs, the gradient ``2*T*M*N``: with `prefer="speed"` the core must take at most
    `MAX_FLOP_SHARE` of that. With `prefer="memory"` it is enough that the core takes fewer bytes than the gradient.

    Args:
        layout: of the parameter.
        element_bytes: of the gradient.
        prefer: "speed" or "memory".
    """
    if not isinstance(layout, MatrixLayout):
        return "keeps full-rank moments"
    if layout.residual.why_whole is not None:
        return layout.residual.why_whole
    if layout.seeded_basis == "gaussian":
        return "a gaussian projection is not orthonormal"
    share, core_bytes, gradient_bytes = costs(layout, element_bytes)
    if prefer == "speed" and share > MAX_FLOP_SHARE:
        return f"a core takes {share:.0%} of the FLOPs"
    if prefer == "memory" and core_bytes >= gradient_bytes:
        return f"a core takes {core_bytes / gradient_bytes:.0%} of the bytes"
    return None


def costs(layout: MatrixLayout, element_bytes: int) -> tuple[float, int, int]:
    """Return the core's share of the FLOPs of a gradient, the bytes of the core, and those of the gradient."""
    layout = layout.whole
    rows, columns = layout.core_shape
    size = layout.rows * layout.columns
    core_bytes = layout.count * rows * columns * layout.dtype.itemsize
    return layout.rank * (layout.rows + layout.columns) / size, core_bytes, layout.count * size * element_bytes
