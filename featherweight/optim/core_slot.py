"""Where the backward pass of a linear layer leaves the core of its weight's gradient, instead of the gradient.

For ``y = x W^T`` the gradient is ``G = g^T x``, and a subspace needs of it only ``P^T G = (g P)^T x`` or
``G Q = g^T (x Q)``: thin products of what the layer has at hand. Behind a right basis it is enough to keep ``x Q``,
(T, R) instead of (T, N), for the backward pass. A `CoreSlot` says what the layer keeps, takes the factors, and adds
their core to the sum of the step (`accumulation.py`). At a refresh the new basis comes from thin products, too.
Shapes: T tokens, M rows, N columns, R rank.
Source: ours; the identity behind it is that of arXiv 2403.03507, Algorithm 2, applied before the gradient is formed.
"""

from typing import TYPE_CHECKING, Any

from torch import Tensor

from featherweight.errors import NumericsError
from featherweight.linalg.outer_product import OuterProduct
from featherweight.optim.accumulation import CoreSum, input_test
from featherweight.optim.layout import Layout

if TYPE_CHECKING:
    from featherweight.optim.layerwise import Layerwise

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
        self.owner, self.parameter, self.prefer, self.exact_refresh = owner, parameter, prefer, exact_refresh
        self._judged: tuple[Layout, str | None] | None = None
        self._held: OuterProduct | None = None
        self._whole_step = -1  # the last step of which a forward pass has kept the input itself

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

    def input_test(self) -> Tensor | None:
        """Return the matrix whose product with the layer's input is to be kept; None to keep the input."""
        step = int(self.state["step"].max()) if self.state else 0
        if step == self._whole_step:  # a repeated forward pass must keep what the first one did
            return None
        total, test = self.owner.sum_of(self.parameter), None
        if self.state and not (total is not None and total.is_sketched):
            _, matrices = self.owner.matrices(self.parameter, None)
            test = input_test(matrices[0], probe_norm=self.owner.probes_norm)
        if test is None:
            self._whole_step = step
        return test

    def version(self) -> int:
        """Return a number that changes when the subspace does."""
        return int(self.state["refresh_count"].sum()) if self.state else 0

    def add(self, left_TM: Tensor, right_TN: Tensor) -> None:
        """Take in the gradient ``left^T right``."""
        factors = OuterProduct(left_TM, right_TN)
        with self.owner.receiving(self.parameter):
            total = self.owner.sum_of(self.parameter)
            if total is None and self._held is None and self.owner.is_single and self._is_due():
                self._held = factors  # if nothing else comes, it is the gradient that the new basis is fitted to
                return
            if total is None:
                total = self._begin(self._held or factors, is_only=False)
            total.add(factors)

    def add_thin(self, left_TM: Tensor, thin_TK: Tensor, version: int) -> None:
        """Take in the gradient ``left^T x``, of which ``thin = x @ input_test()`` is left.

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

    def _is_due(self) -> bool:
        if self.layout.seeded_basis is not None:
            return False
        return not self.state or bool((self.state["step"] >= self.state["next_refresh"]).any())


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
