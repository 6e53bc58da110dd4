"""One projected matrix of a parameter: the phases of its step.

`LowRankOptimizer` makes a `ProjectedMatrix` whenever it needs one; it holds references, the state lives in the
optimizer. An ordinary step runs `refresh`, projects and runs `update_`. A gradient that arrives in pieces is projected
piece by piece (`accumulation.py`) and meets `update_` at the end.
Shapes: weight and gradient (M, N), core (R, N) behind a left basis, (M, R) behind a right one, (R, R) behind both.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from featherweight.errors import ConfigError
from featherweight.linalg.outer_product import Gradient
from featherweight.linalg.random import keyed_generator, mix_keys
from featherweight.linalg.subspace import MatrixSubspace
from featherweight.optim import state as states
from featherweight.optim.policies.lazy import next_gap, similarity_of
from featherweight.optim.policies.moments import moment_policies
from featherweight.optim.policies.refresh import draw_subspace, fit_subspace, next_refresh, smoothed_iteration
from featherweight.optim.policies.residual import residual_policies
from featherweight.optim.policies.rules import rules
from featherweight.optim.step import fused_adamw
from featherweight.optim.step.layout import Layout
from featherweight.optim.step.weight_update import Rounding, add_core_, write_
from featherweight.quant.int8_weight import Int8Weight

Group = dict[str, Any]

_CARRY = 16
"""Keeps the random bits of what a refresh writes after a step apart from those of the step itself."""


@dataclass
class ProjectedMatrix:
    """References to all that the step of one matrix needs."""

    layout: Layout
    state: states.State
    group: Group
    block: int | None
    """Which of the stacked matrices of the parameter; None if it is the only one."""
    turn: tuple[int, int]
    """Position among all projected matrices of the optimizer, and their number."""
    _carried: dict[str, Tensor] | None = None
    """Moments that a refresh has changed and nothing has stored yet, so that they are rounded once and not twice."""
    _lost: Tensor | None = None
    """Momentum that a refresh has left outside of the new subspace, for error feedback."""

    # ---- what is stored

    def counter(self, name: str) -> int:
        """Return a counter of this matrix."""
        return states.read_counter(self.state, name, self.block)

    def set_counter(self, name: str, value: int) -> None:
        """Set a counter of this matrix."""
        states.write_counter(self.state, name, self.block, value)

    def read_moments(self) -> dict[str, Tensor]:
        """Return the moments in the dtype of the arithmetic; dense ones are the stored tensors themselves."""
        if self._carried is not None:
            return self._carried
        return read_moments(self.layout, self._moment_parts(), self.layout.moment_shapes)

    def write_moments(self, moments: Mapping[str, Tensor], rounding: Rounding) -> None:
        """Store the moments."""
        write_moments(self.layout, self._moment_parts(), moments, rounding, self.block or 0)
        self._carried = None

    def store_carried(self) -> None:
        """Store the moments of a refresh that no update follows."""
        if self._carried is not None:
            rounding = rounding_of(self.group, self.layout, self.counter("step"))
            self.write_moments(self._carried, replace(rounding, tensor=_CARRY))

    def subspace(self) -> MatrixSubspace:
        """Return the present subspace, as stored: that is after rounding to `basis_bits`."""
        return self._subspace_in(self.layout.dtype)

    def product_subspace(self) -> MatrixSubspace:
        """Return the present subspace in the dtype in which large products with it run."""
        return self._subspace_in(self.layout.product_dtype)

    def _subspace_in(self, dtype: torch.dtype) -> MatrixSubspace:
        layout = self.layout
        if layout.seeded_basis is not None:
            bases = self._drawn(self.counter("refresh_count"))
            left, right = (None if basis is None else basis.to(dtype) for basis in (bases.left, bases.right))
            return MatrixSubspace(left=left, right=right)
        read = {name: self._basis(name, shape, dtype) for name, shape in layout.basis_shapes().items()}
        return MatrixSubspace(left=read.get("basis_left"), right=read.get("basis_right"))

    def _basis(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        parts = states.parts_of(self.state, name, self.block)
        dense = parts.get("")
        if dense is not None and dense.dtype == dtype:
            return dense
        assert self.layout.basis is not None
        return self.layout.basis.read(parts, shape).to(dtype)

    def has_subspace(self) -> bool:
        """Say whether a first subspace exists."""
        return self.counter("step") > 0 or self.counter("refresh_count") > 0

    def refresh_is_due(self) -> bool:
        """Say whether the next step asks for a new subspace."""
        return self.counter("step") >= self.counter("next_refresh")

    @property
    def device(self) -> torch.device:
        """Where the state is."""
        name = next(iter(self.layout.moments))
        return next(iter(states.parts_of(self.state, name, None).values())).device

    def _moment_parts(self) -> dict[str, dict[str, Tensor]]:
        return {name: states.parts_of(self.state, name, self.block) for name in self.layout.moments}

    def _drawn(self, count: int) -> MatrixSubspace:
        """Return the random subspace number `count`, from 1."""
        layout, device = self.layout, self.device
        assert layout.rank is not None and layout.seeded_basis is not None
        generator = keyed_generator(self.group["seed"], layout.index, self.block or 0, count, device=device)
        return draw_subspace(
            layout.seeded_basis,
            layout.side,
            layout.rows,
            layout.columns,
            layout.rank,
            generator=generator,
            dtype=layout.dtype,
            device=device,
        )

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
        assert layout.rank is not None
        step, count = self.counter("step"), self.counter("refresh_count")
        old = self.subspace() if self.has_subspace() else None
        has_signal = bool(grad_MN.any())
        if old is not None and not has_signal:
            return
        generator = keyed_generator(group["seed"], layout.index, self.block or 0, step)
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
        layout = self.layout
        assert layout.rank is not None
        generator = keyed_generator(self.group["seed"], layout.index, self.block or 0, device=self.device)
        size = (layout.side, layout.rows, layout.columns, layout.rank)
        fresh = draw_subspace("random", *size, generator=generator, dtype=layout.dtype, device=self.device)
        self.install(fresh, None, step=None)

    def redraw(self) -> None:
        """Take the next random subspace; no gradient is needed."""
        count = self.counter("refresh_count")
        old = self._drawn(count) if count else None
        self._schedule(self.counter("step"))
        if old is not None and self.group["moment_policy"] != "keep":
            self.carry(old)
        self._choose_period()

    def install(self, fresh: MatrixSubspace, old: MatrixSubspace | None, *, step: int | None) -> None:
        """Store a subspace, carry the moments from the old one into it, and say when the next one is due.

        Args:
            fresh: its bases.
            old: the one that the moments are in; None before the first step.
            step: the step that asked for it; None leaves the time of the next refresh as it is.
        Raises:
            ConfigError: if the optimizer keeps no basis, because it began with a random method.
        """
        storage = self.layout.basis
        if storage is None:
            raise ConfigError(
                f"optimizer: '{self.layout.name}' has basis_method={self.group['basis_method']!r} in a state without "
                f"bases; expected {self.layout.seeded_basis!r}, with which it began. Build a new optimizer."
            )
        if old is not None:  # a dense basis is read as the stored tensor itself, which is about to change
            old = MatrixSubspace(
                left=None if old.left is None else old.left.clone(),
                right=None if old.right is None else old.right.clone(),
            )
        for name, basis in (("basis_left", fresh.left), ("basis_right", fresh.right)):
            if basis is not None:
                storage.write_(states.parts_of(self.state, name, self.block), basis)
        if step is not None:
            if old is not None and self.layout.queue_size and self.counter("refresh_count"):
                self._adapt_gap(similarity_of(fresh, old, self.group["lazy"]["similarity"]))
            self._schedule(step)
        if old is not None:
            self.carry(old)
        if step is not None:
            self._choose_period()

    def carry(self, old: MatrixSubspace) -> None:
        """Bring the moments from an old subspace into the present one, as the moment policy says."""
        policy, moments = moment_policies.get(self.group["moment_policy"]), self.read_moments()
        fresh = self.subspace()
        before = moments["exp_avg"].clone() if self.layout.error_feedback else None
        moment_step = policy(moments, fresh.overlap(old), self.counter("moment_step"), self.group["betas"])
        self.set_counter("moment_step", moment_step)
        if before is not None:
            beta1 = self.group["betas"][0]
            lost = old.project_back(before).sub_(fresh.project_back(moments["exp_avg"]))
            self._lost = lost.mul_(beta1 / (1 - beta1))
        self._carried = moments

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
        following = next_refresh(step, self.turn, self.gap, stagger=group["stagger"], early=group["early_refresh"])
        self.set_counter("next_refresh", following)
        self.set_counter("refresh_count", self.counter("refresh_count") + 1)

    # ---- periods of full rank, and what the projection loses

    @property
    def is_full_period(self) -> bool:
        """Say whether this matrix follows the complement of its subspace until the next refresh."""
        return "exp_avg_full" in self.state and self.group["full_rank_probability"] > 0

    def needs_gradient(self) -> bool:
        """Say whether the update needs the whole gradient, not only its core."""
        may_begin_period = self.group["full_rank_probability"] > 0 and self.refresh_is_due()
        return self.layout.residual is not None or self.layout.error_feedback or self.is_full_period or may_begin_period

    def _choose_period(self) -> None:
        """Decide at a refresh whether the matrix follows its subspace or the complement until the next one."""
        probability = self.group["full_rank_probability"]
        was_full = self.block is None and self.state.pop("exp_avg_full", None) is not None
        if "full_period" not in self.state or self.block is not None:
            return
        self.set_counter("full_period", 0)
        bits = mix_keys(self.group["seed"], self.layout.index, self.counter("refresh_count"), _CARRY)
        if bits / 2**64 < probability:
            shape = (self.layout.rows, self.layout.columns)
            self.state["exp_avg_full"] = torch.zeros(shape, dtype=self.layout.dtype, device=self.device)
            self.set_counter("full_period", 1)
        elif was_full:  # its momentum stood still for a whole period
            moments = self.read_moments()
            for moment in moments.values():
                moment.zero_()
            self._carried = moments
            self.set_counter("moment_step", 0)

    def _error(self) -> Tensor:
        error = self.state["error"].view(self.layout.blocks or 1, self.layout.rows, self.layout.columns)
        return error[self.block or 0]

    def corrected(self, grad_MN: Tensor) -> Tensor:
        """Return the gradient with what the projection lost before, if that is kept."""
        return grad_MN + self._error() if self.layout.error_feedback else grad_MN

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
        layout, group = self.layout, self.group
        rule = rules.get(layout.rule)
        step, moment_step = self.counter("step"), self.counter("moment_step")
        factor, extra, direction, moments = group["scale"], None, None, None
        if layout.error_feedback:
            assert grad_MN is not None
            error = self._error().copy_(subspace.project_back(core.neg()).add_(grad_MN))
            if self._lost is not None:
                error.add_(self._lost)
                self._lost = None
        if self.is_full_period:
            assert grad_MN is not None
            residual = subspace.project_back(core.neg()).add_(grad_MN).div_(group["full_rank_probability"])
            full = {"exp_avg": self.state["exp_avg_full"]}
            extra = rule.direction(residual, full, step + 1, group)
        else:
            if group["full_rank_probability"] > 0 and self.block is None:
                core = core / (1 - group["full_rank_probability"])
            if self._carried is None and fused_adamw.kernel_for(layout, core, group) is not None:
                rounding, offset = rounding_of(group, layout, step + 1), (self.block or 0) * core.numel()
                parts = self._moment_parts()
                direction = fused_adamw.direction(layout, parts, core, moment_step + 1, group, rounding, offset=offset)
                self.set_counter("moment_step", moment_step + 1)
            else:
                moments = self.read_moments()
                direction = rule.direction(core, moments, moment_step + 1, group)
            if layout.residual is not None:
                assert grad_MN is not None
                policy = residual_policies.get(layout.residual)
                norms = self.state["residual_norm"]
                last_norm = norms if self.block is None else norms[self.block]
                extra = policy.extra(grad_MN, core, direction, subspace, last_norm)
                factor = policy.factor(factor)
                direction = None if policy.replaces_core else direction
        self.finish_(weight_MN, subspace, direction, moments, factor=factor, extra=extra)

    def finish_(
        self,
        weight_MN: Tensor | Int8Weight,
        subspace: MatrixSubspace,
        direction: Tensor | None,
        moments: Mapping[str, Tensor] | None,
        *,
        factor: float,
        extra: Tensor | None = None,
    ) -> None:
        """Store the moments, count the step and write the weight.

        Args:
            weight_MN: (M, N), float or int8; written in place.
            subspace: the present subspace.
            direction: what the inner rule made of the core; None if `extra` is the whole update.
            moments: as the rule has left them; None if it did not run on them.
            factor: of the whole update, beside lr.
            extra: (M, N) direction from outside the subspace, or None.
        """
        layout, group = self.layout, self.group
        step = self.counter("step") + 1
        rounding = rounding_of(group, layout, step)
        if moments is not None:
            self.write_moments(moments, rounding)
            self.set_counter("moment_step", self.counter("moment_step") + 1)
        self.set_counter("step", step)
        alpha, beta = write_factors(float(group["lr"]), group)
        add_core_(
            weight_MN,
            subspace,
            direction,
            alpha=alpha * factor,
            beta=beta,
            rounding=rounding,
            offset=(self.block or 0) * weight_MN.numel(),
            extra=extra,
        )


def write_factors(lr: float, group: Mapping[str, Any]) -> tuple[float, float]:
    """Return (factor of the direction, factor of the weight) of one write.

    Decay first (torch.optim): ``W (1 - lr wd) - lr D``. Decay last (galore-torch): ``(W - lr D)(1 - lr wd)``.
    """
    kept = 1 - lr * group["weight_decay"]
    return (-lr, kept) if group["decay_order"] == "before" else (-lr * kept, kept)


def rounding_of(group: Mapping[str, Any], layout: Layout, step: int) -> Rounding:
    """Return the key of the random bits with which a step writes a parameter."""
    return Rounding(group["seed"], layout.index, step, group["stochastic_rounding"])


def read_moments(
    layout: Layout, parts: Mapping[str, Mapping[str, Tensor]], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Tensor]:
    """Return the moments in the dtype of the arithmetic; dense ones are the stored tensors themselves."""
    return {name: layout.moments[name].read(parts[name], shapes[name]).to(layout.dtype) for name in parts}


def write_moments(
    layout: Layout,
    parts: Mapping[str, Mapping[str, Tensor]],
    moments: Mapping[str, Tensor],
    rounding: Rounding,
    block: int = 0,
    offset: int = 0,
) -> None:
    """Store the moments; in bfloat16 with stochastic rounding.

    To nearest, a second moment with decay 0.999 would never fall: a change of 0.001 is below half a unit.
    """
    for number, (name, values) in enumerate(moments.items(), rounding.tensor + 1):
        dense = parts[name].get("")
        if dense is not None and dense.dtype == torch.bfloat16:
            write_(dense, values, replace(rounding, tensor=number), offset + block * values.numel())
        else:
            layout.moments[name].write_(parts[name], values)
