"""The step of a parameter that is projected as a tensor, and that of a complex parameter.

`TensorStep` treats the parameter, `ProjectedTensor` has the phases of its step.
Shapes: tensor (n_1, .., n_D) with N entries, core (r_1, .., r_D), K entries in the sparse branch.
Source: Tensor-GaLore, arXiv 2501.02379v1; TensorGRaD, arXiv 2501.02379v2.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from featherweight.linalg.random import keyed_generator, mix_keys
from featherweight.linalg.tucker import SliceSubspace, TensorSubspace, TuckerSubspace
from featherweight.linalg.tucker_fit import fit_selection, fit_slices, fit_tucker
from featherweight.optim.policies.equalized import equalize_
from featherweight.optim.policies.refresh import next_refresh
from featherweight.optim.step.adam import TogetherInLists
from featherweight.optim.step.layout import Group, Member, State, Stored, parts_of
from featherweight.optim.step.step import Step
from featherweight.optim.step.tensor_layout import ComplexLayout, TensorLayout
from featherweight.optim.step.weight_update import Rounding, copy_back, rounding_of, weight_of, write_, write_factors
from featherweight.optim.tucker.moments import aligned, carry
from featherweight.optim.tucker.plan import TensorPlan
from featherweight.optim.tucker.sparse import choose_entries, scattered_entries
from featherweight.tiles import tiles

Moments = dict[str, Tensor]

SLICE_NUMBERS = 1 << 19
_CARRY, _SPARSE = 16, 103  # tell random numbers of one tensor apart


@dataclass
class ProjectedTensor:
    """References to all that the step of one tensor needs."""

    layout: TensorLayout
    state: State
    group: Group
    stagger_position: tuple[int, int]
    """Position among all projected parameters of the optimizer, and their number."""
    _carried: Moments | None = None
    """Moments that a refresh has changed and nothing has stored yet, so that they are rounded once and not twice."""

    @property
    def plan(self) -> TensorPlan:
        """How the tensor is projected."""
        return self.layout.plan

    def counter(self, name: str) -> int:
        """Return a counter."""
        return int(self.state[name])

    def set_counter(self, name: str, value: int) -> None:
        """Set a counter."""
        self.state[name].fill_(value)

    def subspace(self) -> TensorSubspace:
        """Return the present subspace, as stored."""
        plan, layout = self.plan, self.layout
        assert layout.basis is not None
        read: dict[str, Tensor] = {}
        for name, shape in plan.factor_shapes().items():
            stored = layout.basis.read(parts_of(self.state, name), shape).to(layout.dtype)
            read[name] = plan.numbers(stored)
        if plan.kind == "slices":
            return SliceSubspace(plan.shape, read["basis"])
        indices = {name: self.state[name].long() for name in plan.index_shapes() if name != "sparse_index"}
        factors = [read.get(f"basis_{k}", indices.get(f"index_{k}")) for k in range(len(plan.shape))]
        return TuckerSubspace(plan.shape, tuple(factors))

    # ---- refresh

    def refresh_is_due(self) -> bool:
        """Say whether the next step asks for a new subspace."""
        return self.counter("step") >= self.counter("next_refresh")

    def refresh(self, grad: Tensor) -> None:
        """Take a new subspace if one is due, fitted to this gradient, and carry the moments into it.

        A zero gradient has nothing to fit: the old subspace (at first, columns of the identity) stays due.

        Args:
            grad: of the parameter's shape, finite.
        """
        if not self.refresh_is_due():
            return
        numbers, step = self._numbers(grad), self.counter("step")
        has_signal = bool(numbers.any())
        old = self.subspace() if self.counter("refresh_count") or step else None
        if old is not None and (not has_signal or self._stands_still(old, numbers)):
            if has_signal:
                self._schedule(step)
            return
        if old is not None:  # dense bases are read as the stored tensors themselves, which are about to change
            old = _copied(old)
        fresh = self._fit(numbers, old, step)
        policy = self.group["moment_policy"]
        if old is not None and policy == "align":
            fresh = aligned(fresh, old)
        self._store(fresh)
        if old is not None and self.counter("moment_step"):
            moments = self._moments("")
            moment_step = carry(
                policy, self.plan, moments, fresh, old, self.counter("moment_step"), self.group["betas"]
            )
            self.set_counter("moment_step", moment_step)
            self._carried = moments
        if self.plan.sparse_numel:
            self._choose_sparse(numbers, fresh)
        if has_signal:
            self._schedule(step)
            if self.plan.may_skip:
                self.state["captured"].fill_(fresh.energy(numbers))

    def _fit(self, numbers: Tensor, old: TensorSubspace | None, step: int) -> TensorSubspace:
        plan, group = self.plan, self.group
        if plan.kind == "slices":
            return fit_slices(numbers, plan.ranks[0])
        if plan.kind == "select":
            return fit_selection(numbers, plan.ranks, range(2, len(plan.shape)))
        assert old is None or isinstance(old, TuckerSubspace)
        return fit_tucker(
            numbers,
            plan.ranks,
            group["basis_method"],
            old=old,
            generator=keyed_generator(group["seed"], self.layout.index, step),
            max_workspace_bytes=group["max_workspace_bytes"],
        ).subspace

    def _stands_still(self, old: TensorSubspace, numbers: Tensor) -> bool:
        """Say whether the old subspace captures as much of this gradient as of the one that it was fitted to."""
        before = float(self.state["captured"]) if self.plan.may_skip else 0.0
        return before > 0 and abs(old.energy(numbers) / before - 1) <= self.group["skip_tol"]

    def _store(self, fresh: TensorSubspace) -> None:
        plan, storage = self.plan, self.layout.basis
        assert storage is not None
        bases: dict[str, Tensor | None] = {"basis": fresh.basis} if isinstance(fresh, SliceSubspace) else {}
        if isinstance(fresh, TuckerSubspace):
            bases = {f"basis_{mode}": factor for mode, factor in enumerate(fresh.factors)}
            for name in plan.index_shapes():
                if name != "sparse_index":
                    self.state[name].copy_(fresh.factors[int(name.removeprefix("index_"))])  # type: ignore[arg-type]
        for name in plan.factor_shapes():
            factor = bases[name]
            assert factor is not None
            storage.write_(parts_of(self.state, name), plan.pairs(factor).contiguous())

    def _schedule(self, step: int) -> None:
        gap, group = self.group["update_proj_gap"], self.group
        self.set_counter(
            "next_refresh", next_refresh(step, self.stagger_position, gap, stagger=group["stagger"], early=False)
        )
        self.set_counter("refresh_count", self.counter("refresh_count") + 1)

    # ---- sparse branch

    def _choose_sparse(self, numbers: Tensor, fresh: TensorSubspace) -> None:
        """Choose the entries of the sparse branch anew; its moments belong to entries, so new ones begin at zero."""
        plan, group = self.plan, self.group
        if plan.stores_sparse_index:
            seen = numbers
            if group["sparse_order"] == "low_rank_first":
                seen = numbers - fresh.project_back(fresh.project(numbers))
            key = (group["seed"], self.layout.index, self.counter("refresh_count"), _SPARSE)
            chosen = choose_entries(seen.reshape(-1).abs(), plan.sparse_numel, group["sparse_select"], key)
            self.state["sparse_index"].copy_(chosen)
        if group["sparse_reset"]:
            for name in self.layout.moments:
                if name.startswith("sparse_"):
                    parts = parts_of(self.state, name)
                    shape = self.layout.moment_shapes[name]
                    zeros = torch.zeros(shape, dtype=self.layout.dtype, device=numbers.device)
                    self.layout.moments[name].write_(parts, zeros)
            self.set_counter("sparse_step", 0)

    def _sparse_index(self, device: torch.device) -> Tensor:
        if self.plan.stores_sparse_index:
            return self.state["sparse_index"].long()
        numel = math.prod(self.plan.shape)
        key = mix_keys(self.group["seed"], self.layout.index, self.counter("refresh_count"), _SPARSE)
        return scattered_entries(numel, self.plan.sparse_numel, key).to(device)

    # ---- project and update

    def project(self, grad: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the core of a gradient and the entries of the sparse branch; both are linear in it.

        Args:
            grad: of the parameter's shape. Not modified.
        """
        numbers, subspace = self._numbers(grad), self.subspace()
        if not self.plan.sparse_numel:
            return subspace.project(numbers), None
        index = self._sparse_index(grad.device)
        if self.group["sparse_order"] == "sparse_first":
            flat = numbers.reshape(-1)
            return subspace.project(flat.index_fill(0, index, 0).view(self.plan.shape)), flat[index]
        core = subspace.project(numbers)
        return core, (numbers - subspace.project_back(core)).reshape(-1)[index]

    def residual(self, grad: Tensor, core: Tensor) -> Tensor | None:
        """Return the direction of full size that follows what core and sparse branch lose; None if that is dropped.

        Args:
            grad: of the parameter's shape. Not modified.
            core: its projection.
        """
        plan, group = self.plan, self.group
        if plan.residual is None:
            return None
        numbers = self._numbers(grad)
        rest = self.subspace().project_back(core.neg()).add_(numbers)
        if plan.sparse_numel:
            rest.view(-1).index_fill_(0, self._sparse_index(grad.device), 0)
        # "matrix" unfolds the tensor; its frequencies are those of the parameter.
        shape = tuple(self.layout.shape[: grad.ndim - (plan.is_complex and not grad.is_complex())])
        extra = equalize_(rest.view(shape), numbers.view(shape), by_frequency=plan.is_complex)
        return extra.mul_(group["residual_weight"]).view(plan.shape)

    def update_(
        self, weight: Tensor, core: Tensor, sparse: Tensor | None, rounding: Rounding, extra: Tensor | None = None
    ) -> None:
        """Run the rule on core and sparse branch and write the weight.

        Args:
            weight: the parameter's data, contiguous; written in place.
            core: of this step's gradient.
            sparse: (K,) entries of the sparse branch, or None.
            rounding: key of the random bits of this step.
            extra: direction of full size beside both; see `residual`.
        """
        plan, group = self.plan, self.group
        scale = plan.auto_scale if group["scale"] == "auto" else group["scale"]
        direction = self.subspace().project_back(self._direction("", core, rounding) * scale)
        if sparse is not None:
            entries = self._direction("sparse_", sparse, rounding) * group["sparse_weight"]
            direction.view(-1).index_add_(0, self._sparse_index(weight.device), entries)
        if extra is not None:
            direction.add_(extra)
        self.set_counter("step", self.counter("step") + 1)
        write_direction_(weight, plan.pairs(direction), group, rounding)

    def _direction(self, branch: str, numbers: Tensor, rounding: Rounding) -> Tensor:
        """Run the rule on one branch and store its moments."""
        plan, group = self.plan, self.group
        counter = "sparse_step" if branch else "moment_step"
        step = self.counter(counter) + 1
        moments = self._moments(branch)
        direction = self.layout.inner_rule(group).direction(plan.pairs(numbers), moments, step, group)
        self._write_moments(branch, moments, rounding)
        self.set_counter(counter, step)
        return plan.numbers(direction)

    def _moments(self, branch: str) -> Moments:
        """Return the moments of a branch under the names that rules know; dense ones are the stored tensors."""
        if not branch and self._carried is not None:
            return self._carried
        found = {}
        for name, storage in self.layout.moments.items():
            if name.startswith("sparse_") == bool(branch):
                parts = parts_of(self.state, name)
                found[name.removeprefix(branch)] = storage.read(parts, self.layout.moment_shapes[name]).to(
                    self.layout.dtype
                )
        return found

    def _write_moments(self, branch: str, moments: Moments, rounding: Rounding) -> None:
        named = {branch + name: values for name, values in moments.items()}
        parts = {name: parts_of(self.state, name) for name in named}
        begin = rounding.tensor + (4 if branch else 0)
        Stored(self.layout, parts, replace(rounding, tensor=begin)).write(named)
        if not branch:
            self._carried = None

    def store_carried(self, rounding: Rounding) -> None:
        """Store the moments of a refresh that the update follows only later."""
        if self._carried is not None:
            self._write_moments("", self._carried, replace(rounding, tensor=_CARRY))

    def _numbers(self, grad: Tensor) -> Tensor:
        return self.plan.tensor_of(grad, self.layout.dtype)


def write_direction_(weight: Tensor, direction: Tensor, group: Mapping[str, Any], rounding: Rounding) -> None:
    """Write ``W <- (1 - lr wd) W - lr D`` (or decay last), 16-bit weights tile by tile.

    Args:
        weight: any dtype, contiguous; complex ones are written as pairs.
        direction: the same numbers, real or as pairs, float32 or float64.
        group: lr, decay and its order.
        rounding: key of the random bits.
    """
    alpha, beta = write_factors(group)
    flat = (torch.view_as_real(weight) if weight.is_complex() else weight).view(-1)
    update = direction.reshape(-1)
    if flat.dtype == update.dtype:
        flat.mul_(beta).add_(update, alpha=alpha)
        return
    for start, stop in tiles(flat.numel(), 2 * SLICE_NUMBERS):
        values = flat[start:stop].to(update.dtype).mul_(beta).add_(update[start:stop], alpha=alpha)
        write_(flat[start:stop], values, rounding, start)


def _copied(subspace: TensorSubspace) -> TensorSubspace:
    if isinstance(subspace, SliceSubspace):
        return SliceSubspace(subspace.shape, subspace.basis.clone())
    return TuckerSubspace(subspace.shape, tuple(None if u is None else u.clone() for u in subspace.factors))


class TensorStep(Step):
    """Refresh, projection mode by mode, inner rule on core and sparse branch, and write."""

    layout: TensorLayout
    matrix_count = 1

    # ---- state

    def restore(self, state: State, group: Group, dtype: torch.dtype) -> None:
        """See `Step.restore`: the ranks that a state has, if they fit the tensor."""
        plan = self.layout.plan
        if plan.is_open and "ranks" in state:
            ranks = tuple(state["ranks"].tolist())
            if len(ranks) == len(plan.shape) and all(1 <= r <= n for r, n in zip(ranks, plan.shape, strict=True)):
                self.layout = self.layout.with_ranks(ranks, group)

    def waits_for_gradient(self) -> bool:
        """See `Step.waits_for_gradient`: ranks that follow the spectrum of the first one."""
        return self.layout.plan.is_open

    # ---- update

    def step(
        self, member: Member, grad: Tensor, is_used: list[bool] | None = None, together: TogetherInLists | None = None
    ) -> None:
        """See `Step.step`."""
        if self.layout.plan.is_open:
            self.layout = self.layout.settled(grad, member.group)
            if self.layout.plan.is_open:
                return  # nothing to follow, and no moments that could move
            self.create_state(member)
        tensor, weight = self.tensor(member), weight_of(member.parameter)
        assert isinstance(weight, Tensor)
        rounding = rounding_of(member.group, self.layout.index, tensor.counter("step") + 1)
        tensor.refresh(grad)
        core, sparse = tensor.project(grad)
        tensor.update_(weight, core, sparse, rounding, tensor.residual(grad, core))
        copy_back(member.parameter, weight)
        self.ran = self.layout.inner_rule(member.group).words

    def refresh_is_due(self, state: State) -> bool:
        """Say whether the next step asks for a new subspace."""
        return not state or int(state["step"]) >= int(state["next_refresh"])

    def tensor(self, member: Member) -> ProjectedTensor:
        """Return the tensor of the parameter; its state is created if it has none."""
        if not member.state:
            self.create_state(member)
        return ProjectedTensor(self.layout, member.state, member.group, member.position)


class ComplexStep(Step):
    """The step of a complex parameter that keeps moments of its own size, in slices of pairs."""

    layout: ComplexLayout

    def step(
        self, member: Member, grad: Tensor, is_used: list[bool] | None = None, together: TogetherInLists | None = None
    ) -> None:
        """See `Step.step`."""
        if not member.state:
            self.create_state(member)
        layout, state, group = self.layout, member.state, member.group
        weight = weight_of(member.parameter)
        assert isinstance(weight, Tensor)
        step = int(state["step"]) + 1
        state["step"].fill_(step)
        rounding, rule = rounding_of(group, layout.index, step), layout.inner_rule(group)
        weight_P2 = (torch.view_as_real(weight) if weight.is_complex() else weight).view(-1, 2)
        grad_P2 = layout.plan.pairs(grad).reshape(-1, 2)
        stored = {name: parts_of(state, name) for name in layout.moments}
        widths = {name: 1 if name == "exp_avg_sq" and layout.plan.by_modulus else 2 for name in layout.moments}
        for start, stop in tiles(len(weight_P2), SLICE_NUMBERS):
            parts, moments = {}, {}
            for name, storage in layout.moments.items():
                shape = (stop - start, 2)[: widths[name]]
                parts[name] = storage.slice(stored[name], widths[name] * start, widths[name] * stop)
                moments[name] = storage.read(parts[name], shape).to(layout.dtype)
            direction = rule.direction(grad_P2[start:stop].to(layout.dtype), moments, step, group)
            Stored(layout, parts, rounding, offset=2 * start).write(moments)
            write_direction_(weight_P2[start:stop], direction, group, rounding)
        copy_back(member.parameter, weight)
        self.ran = rule.words
