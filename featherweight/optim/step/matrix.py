"""The step of a parameter of one or several projected matrices.

`MatrixStep` treats the parameter, `ProjectedMatrix` has the phases of the step of one of its matrices: an ordinary step
runs `refresh`, projects and runs `update_`. A gradient that arrives in pieces is projected piece by piece
(`backward/core_sum.py`) and meets `update_` at the end.
Shapes: weight and gradient (M, N), core (R, N) behind a left basis, (M, R) behind a right one, (R, R) behind both.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from featherweight.errors import ConfigError
from featherweight.linalg.outer_product import Gradient
from featherweight.linalg.random import keyed_generator
from featherweight.linalg.subspace import MatrixSubspace
from featherweight.optim.policies.lazy import next_gap, similarity_of
from featherweight.optim.policies.moments import moment_policies
from featherweight.optim.policies.refresh import draw_subspace, fit_subspace, next_refresh, smoothed_iteration
from featherweight.optim.policies.rules import rules
from featherweight.optim.policies.sides import SIDES
from featherweight.optim.step import adam
from featherweight.optim.step.check import is_usable
from featherweight.optim.step.layout import Group, Member, State, Stored, parts_of
from featherweight.optim.step.matrix_layout import MatrixLayout
from featherweight.optim.step.step import Step
from featherweight.optim.step.weight_update import add_core_, copy_back, rounding_of, weight_of, write_factors
from featherweight.quant.int8_weight import Int8Weight

FLIP_SHARE = 0.9
"""`min_memory` takes the cheaper side if it holds this share of the usual side's energy on the next batch."""
_CARRY = 16
"""Keeps the random bits of what a refresh writes after a step apart from those of the step itself."""


@dataclass
class ProjectedMatrix:
    """One matrix of a parameter, for as long as a step needs it: references, the state lives in the optimizer."""

    layout: MatrixLayout
    state: State
    group: Group
    number: int = 0
    """Which of the stacked matrices of the parameter."""
    stagger_position: tuple[int, int] = (0, 1)
    """Position among all projected matrices of the optimizer, and their number."""
    passing: dict[str, Tensor] = field(default_factory=dict)
    """What the residual policy hands from the refresh to the update."""
    ran: str = ""
    """What computed the inner update; see `featherweight.optim.step.adam`."""
    _carried: dict[str, Tensor] | None = None
    """Moments that a refresh has changed and nothing has stored yet, so that they are rounded once and not twice."""

    def __post_init__(self) -> None:
        layout = self.layout
        self.block = None if layout.blocks is None else self.number
        """Where its state is in stacked ones; None if the parameter is one matrix."""
        self.index, self.shape, self.dtype = layout.index, (layout.rows, layout.columns), layout.dtype
        """Position of the parameter, (M, N), and dtype of the arithmetic."""
        first = parts_of(self.state, next(iter(layout.moments)))
        self.device = next(iter(first.values())).device
        """Where the state is."""

    # ---- what is stored

    def counter(self, name: str) -> int:
        """Return a counter of this matrix."""
        stored = self.state[name]
        return int(stored if self.block is None else stored[self.block])

    def set_counter(self, name: str, value: int) -> None:
        """Set a counter of this matrix."""
        stored = self.state[name]
        (stored if self.block is None else stored[self.block]).fill_(value)

    def part_of_parameter(self, tensor: Tensor) -> Tensor:
        """Return this matrix of a contiguous tensor of the parameter's shape, as a view."""
        return tensor.view(self.layout.count, *self.shape)[self.number]

    def stored_moments(self, step: int) -> Stored:
        """Return the moments as they are stored, and as a step writes them."""
        parts = {name: parts_of(self.state, name, self.block) for name in self.layout.moments}
        rounding = rounding_of(self.group, self.index, step)
        return Stored(self.layout, parts, rounding, self.layout.first_moment, self.number)

    def read_moments(self) -> dict[str, Tensor]:
        """Return the moments in the dtype of the arithmetic; dense ones are the stored tensors themselves."""
        return self.stored_moments(0).read() if self._carried is None else self._carried

    def hold_moments(self, moments: dict[str, Tensor], moment_step: int) -> None:
        """Keep moments that hold `moment_step` steps until the update, or `store_carried`, stores them."""
        self._carried = moments
        self.set_counter("moment_step", moment_step)

    def write_moments(self, moments: Mapping[str, Tensor]) -> None:
        """Store the moments that the update of this step has made, and count it."""
        self.stored_moments(self.counter("step") + 1).write(moments)
        self._count_moments()

    def _count_moments(self) -> None:
        self.set_counter("moment_step", self.counter("moment_step") + 1)
        self._carried = None

    def store_carried(self) -> None:
        """Store the moments of a refresh that no update follows."""
        if self._carried is not None:
            stored = self.stored_moments(self.counter("step"))
            replace(stored, rounding=replace(stored.rounding, tensor=_CARRY)).write(self._carried)
            self._carried = None

    def subspace(self, dtype: torch.dtype | None = None) -> MatrixSubspace:
        """Return the present subspace as stored, that is after rounding to `basis_bits`.

        Args:
            dtype: of the bases; None for that of the arithmetic. Large products run in `layout.product_dtype`.
        """
        layout, dtype = self.layout, dtype or self.layout.dtype
        if layout.seeded_basis is not None:
            bases = self._drawn(self.counter("refresh_count"))
            left, right = (None if basis is None else basis.to(dtype) for basis in (bases.left, bases.right))
            return MatrixSubspace(left=left, right=right)
        stored = {name: parts_of(self.state, name, self.block) for name in layout.basis_shapes()}
        read = {name: layout.read_basis(name, parts, dtype) for name, parts in stored.items()}
        return MatrixSubspace(left=read.get("basis_left"), right=read.get("basis_right"))

    def subspace_at_hand(self, dtype: torch.dtype | None = None) -> MatrixSubspace:
        """Return the part of the present subspace that belongs to the rows at hand; see `subspace`."""
        if self.layout.has_own_basis:
            return MatrixSubspace(left=self.state["basis_left"].to(dtype or self.layout.dtype))
        return self.layout.at_hand(self.subspace(dtype))

    def has_subspace(self) -> bool:
        """Say whether a first subspace exists."""
        return self.counter("step") > 0 or self.counter("refresh_count") > 0

    def refresh_is_due(self) -> bool:
        """Say whether the next step asks for a new subspace."""
        return self.counter("step") >= self.counter("next_refresh")

    def needs_gradient(self) -> bool:
        """Say whether the update needs the whole gradient, not only its core."""
        residual = self.layout.residual
        return not residual.is_plain and residual.needs_gradient(self)

    def _drawn(self, count: int) -> MatrixSubspace:
        """Return the random subspace number `count`, from 1."""
        assert self.layout.seeded_basis is not None
        return self._draw(self.layout.seeded_basis, count)

    def _draw(self, method: str, *key: int) -> MatrixSubspace:
        layout, device = self.layout, self.device
        generator = keyed_generator(self.group["seed"], layout.index, self.number, *key, device=device)
        size = (layout.side, layout.all_rows, layout.all_columns, layout.rank)
        return draw_subspace(method, *size, generator=generator, dtype=layout.dtype, device=device)

    # ---- refresh

    def refresh(self, grad_MN: Gradient) -> None:
        """Take a new subspace if one is due, fitted to this gradient, and carry the moments into it.

        A zero gradient has nothing to fit: the old subspace stays, or a random one stands in, and it stays due.
        """
        if not self.refresh_is_due():
            return
        if self.layout.seeded_basis is not None:
            self.redraw()
            return
        layout, group = self.layout, self.group
        step, count = self.counter("step"), self.counter("refresh_count")
        old = self.subspace() if self.has_subspace() else None
        if layout.shard is not None:
            assert isinstance(grad_MN, Tensor)
            grad_MN = layout.shard.whole(grad_MN)  # that of one matrix, for as long as a basis is fitted to it
        has_signal = bool(grad_MN.any())
        if old is not None and not has_signal:
            return
        generator = keyed_generator(group["seed"], layout.index, self.number, step)
        method, start = group["basis_method"], old if count else None
        smoothing = group["basis_smoothing"]
        if start is not None and smoothing > 0 and method in ("auto", "subspace_iteration") and layout.side != "both":
            fresh = smoothed_iteration(grad_MN, start, self.mean_core(), smoothing)
        else:
            fresh = fit_subspace(grad_MN, layout.side, layout.rank, method, old=start, generator=generator)
        self.install(fresh, old, step=step if has_signal else None)
        if has_signal and count == 0 and layout.alternative is not None:
            other = fit_subspace(grad_MN, layout.alternative, layout.rank, method, old=None, generator=generator)
            basis = other.right if other.left is None else other.left
            assert basis is not None
            self.state["trial_basis"] = basis.to(layout.dtype)

    def stand_in(self) -> None:
        """Take a random subspace that asks to be replaced: as long as nothing was fitted, a refresh stays due."""
        self.install(self._draw("random"), None, step=None)

    def redraw(self) -> None:
        """Take the next random subspace; no gradient is needed."""
        count = self.counter("refresh_count")
        old = self._drawn(count) if count else None
        self._schedule(self.counter("step"))
        if old is not None and self.group["moment_policy"] != "keep":
            self.carry(old)
        self.layout.residual.refreshed(self)

    def install(self, fresh: MatrixSubspace, old: MatrixSubspace | None, *, step: int | None) -> None:
        """Store a subspace, carry the moments from the old one into it, and say when the next one is due.

        Args:
            fresh: its bases.
            old: the one that the moments are in; None before the first step.
            step: the step that asked for it; None leaves the time of the next refresh as it is.
        Raises:
            ConfigError: if the optimizer keeps no basis, because it began with a random method.
        """
        if self.layout.basis is None:
            raise ConfigError(
                f"optimizer: '{self.layout.name}' has basis_method={self.group['basis_method']!r} in a state without "
                f"bases; expected {self.layout.seeded_basis!r}, with which it began. Build a new optimizer."
            )
        if old is not None:  # a dense basis is read as the stored tensor itself, which is about to change
            left, right = (None if basis is None else basis.clone() for basis in (old.left, old.right))
            old = MatrixSubspace(left=left, right=right)
        for name, basis in (("basis_left", fresh.left), ("basis_right", fresh.right)):
            if basis is not None:
                self.layout.write_basis_(name, parts_of(self.state, name, self.block), basis)
        if step is not None:
            if old is not None and self.layout.queue_size and self.counter("refresh_count"):
                self._adapt_gap(similarity_of(fresh, old, self.group["lazy"]["similarity"]))
            self._schedule(step)
        if old is not None:
            self.carry(old)
        if step is not None:
            self.layout.residual.refreshed(self)

    def carry(self, old: MatrixSubspace) -> None:
        """Bring the moments from an old subspace into the present one, as the moment policy says."""
        policy, moments = moment_policies.get(self.group["moment_policy"]), self.layout.to_carry(self.read_moments())
        fresh = self.subspace()
        before = moments["exp_avg"].clone() if self.layout.residual.follows_moments else None
        moment_step = policy(moments, fresh.overlap(old), self.counter("moment_step"), self.group["betas"])
        if before is not None:
            self.layout.residual.carried(self, before, old, moments["exp_avg"], fresh)
        self.hold_moments(self.layout.carried(moments), moment_step)

    def mean_core(self) -> Tensor:
        """Return the bias-corrected first moment, what the optimizer remembers of the cores; zeros before a step."""
        beta1, step = self.group["betas"][0], self.counter("moment_step")
        exp_avg = self.read_moments()["exp_avg"]
        return exp_avg / (1 - beta1**step) if step else torch.zeros_like(exp_avg)

    @property
    def gap(self) -> int:
        """Steps between refreshes: `update_proj_gap`, or what a lazy refresh has made of it."""
        base: int = self.group["update_proj_gap"]
        return max(base, self.counter("refresh_gap")) if self.layout.queue_size else base

    def _adapt_gap(self, similarity: float) -> None:
        """Take in how near the new subspace is to the one before, and lengthen or shorten the interval."""
        stored = self.state["similarities"] if self.block is None else self.state["similarities"][self.block]
        seen: list[float] = stored[: self.counter("similarity_count")].tolist()
        queue = [*seen, similarity][-len(stored) :]
        gap, is_cleared = next_gap(self.gap, queue, self.group["update_proj_gap"], self.group["lazy"])
        queue = [] if is_cleared else queue
        stored[: len(queue)] = torch.tensor(queue)
        self.set_counter("similarity_count", len(queue))
        self.set_counter("refresh_gap", gap)

    def _schedule(self, step: int) -> None:
        group = self.group
        following = next_refresh(
            step, self.stagger_position, self.gap, stagger=group["stagger"], early=group["early_refresh"]
        )
        self.set_counter("next_refresh", following)
        self.set_counter("refresh_count", self.counter("refresh_count") + 1)

    # ---- update

    def update_(
        self, weight_MN: Tensor | Int8Weight, core: Tensor, subspace: MatrixSubspace, grad_MN: Tensor | None
    ) -> None:
        """Run the inner rule on a core and write the weight.

        Args:
            weight_MN: (M, N), float or int8; written in place.
            core: of this step's gradient, in the dtype of the arithmetic.
            subspace: the present subspace.
            grad_MN: the (corrected) gradient where `needs_gradient`, else None.
        """
        if self.layout.residual.is_plain:
            self.write_(weight_MN, subspace, self.core_direction(core), factor=self.group["scale"])
        else:
            update = self.layout.residual.update(self, core, subspace, grad_MN)
            self.write_(weight_MN, subspace, update.core, factor=update.factor, extra=update.extra)

    def core_direction(self, core: Tensor) -> Tensor:
        """Run the inner rule on a core, store its moments and return its direction."""
        stored, step = self.stored_moments(self.counter("step") + 1), self.counter("moment_step") + 1
        direction, self.ran = adam.core_direction(stored, self._carried, core, step, self.group)
        self._count_moments()
        return direction

    def full_direction(self, grad_MN: Tensor, moments: dict[str, Tensor]) -> Tensor:
        """Run the inner rule on a gradient of full size, with moments of its own."""
        rule = rules.get(self.layout.rule)
        self.ran = rule.words
        return rule.direction(grad_MN, moments, self.counter("step") + 1, self.group)

    def write_(
        self,
        weight_MN: Tensor | Int8Weight,
        subspace: MatrixSubspace,
        direction: Tensor | None,
        *,
        factor: float,
        extra: Tensor | None = None,
    ) -> None:
        """Count the step and write the weight.

        Args:
            weight_MN: (M, N), float or int8; written in place.
            subspace: the present subspace.
            direction: what the inner rule made of the core; None if `extra` is the whole update.
            factor: of the whole update, beside lr.
            extra: (M, N) direction from outside the subspace, or None.
        """
        step = self.counter("step") + 1
        self.set_counter("step", step)
        alpha, beta = write_factors(self.group)
        add_core_(
            weight_MN,
            subspace,
            None if direction is None else self.layout.for_weight(direction),
            alpha=alpha * factor,
            beta=beta,
            rounding=replace(rounding_of(self.group, self.index, step), row_stride=self.layout.row_stride),
            offset=self.layout.first_element + self.number * weight_MN.numel(),
            extra=extra,
        )


class MatrixStep(Step):
    """Refresh, projection, inner rule and write, matrix by matrix.

    Args:
        layout: on the side that its shape says.
    """

    layout: MatrixLayout

    def __init__(self, layout: MatrixLayout) -> None:
        super().__init__(layout)
        self.planned = layout
        """The layout before `proj_type="min_memory"` has chosen a side."""
        self.matrix_count = layout.count

    # ---- state

    def restore(self, state: State, group: Group, dtype: torch.dtype) -> None:
        """See `Step.restore`: the side that a state is on, and the width of its bases."""
        side = SIDES[int(state["side"].reshape(-1)[0])] if "side" in state else self.planned.side
        layout = self.planned if side == self.planned.side else self.planned.on_side(side, group)
        self.layout = layout.with_stored_basis(state, group, dtype)

    def passing_state(self, state: State, group: Group) -> dict[str, Tensor]:
        """See `Step.passing_state`."""
        passing = dict(self.layout.residual.passing_state(state, self.layout.shape, self.layout.dtype))
        if "trial_basis" in state and self.layout.alternative is not None:
            (shape,) = self.layout.on_side(self.layout.alternative, group).basis_shapes().values()
            passing["trial_basis"] = torch.empty(shape, dtype=self.layout.dtype, device="meta")
        return passing

    def side_is_open(self, state: State) -> bool:
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
        self,
        member: Member,
        grad: Tensor,
        is_used: list[bool] | None = None,
        together: adam.TogetherInLists | None = None,
    ) -> None:
        """See `Step.step`."""
        weight = weight_of(member.parameter)
        matrices = self.matrices(member, grad)
        layout, is_plain = self.layout, self.layout.residual.is_plain
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
            grad_MN = given_MN if is_plain else layout.residual.corrected(matrix, given_MN)
            matrix.refresh(grad_MN)
            subspace = matrix.subspace_at_hand(layout.product_dtype)
            core = layout.project(subspace, grad_MN)
            if not (is_plain and together is not None and together.add_matrix(matrix, weight_MN, core, subspace)):
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
