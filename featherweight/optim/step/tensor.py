"""One tensor of a parameter: the phases of its step.

The counterpart of `matrix.py` for tensors: `refresh`, `project`, `update_`. `TensorSum` is what layer-wise accumulation
keeps of its gradients. A tensor that is not projected runs `step_dense`.
Shapes: tensor (n_1, .., n_D) with N entries, core (r_1, .., r_D), K entries in the sparse branch.
Source: Tensor-GaLore, arXiv 2501.02379v1; TensorGRaD, arXiv 2501.02379v2.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from math import gcd
from typing import Any

import torch
from torch import Tensor

from featherweight.linalg.random import keyed_generator, mix_keys
from featherweight.linalg.tucker import SliceSubspace, TensorSubspace, TuckerSubspace
from featherweight.linalg.tucker_fit import fit_selection, fit_slices, fit_tucker
from featherweight.optim import state as states
from featherweight.optim.policies.moments import moment_policies
from featherweight.optim.policies.refresh import next_refresh
from featherweight.optim.policies.rules import Rule, rules
from featherweight.optim.step.layout import Layout
from featherweight.optim.step.matrix import rounding_of, write_factors, write_moments
from featherweight.optim.step.weight_update import Rounding, copy_back, weight_of, write_
from featherweight.optim.tucker.plan import TensorPlan
from featherweight.optim.tucker.ranks import is_open
from featherweight.report import Report
from featherweight.tiles import tiles

Group = dict[str, Any]
Moments = dict[str, Tensor]

SLICE_NUMBERS = 1 << 19
_CARRY, _SPARSE = 16, 103  # tell random numbers of one tensor apart


@dataclass
class ProjectedTensor:
    """References to all that the step of one tensor needs."""

    layout: Layout
    state: states.State
    group: Group
    turn: tuple[int, int]
    """Position among all projected parameters of the optimizer, and their number."""
    _carried: Moments | None = None
    """Moments that a refresh has changed and nothing has stored yet, so that they are rounded once and not twice."""

    @property
    def plan(self) -> TensorPlan:
        """How the tensor is projected."""
        assert self.layout.tensor is not None
        return self.layout.tensor

    def counter(self, name: str) -> int:
        """Return a counter."""
        return states.read_counter(self.state, name, None)

    def set_counter(self, name: str, value: int) -> None:
        """Set a counter."""
        states.write_counter(self.state, name, None, value)

    def subspace(self) -> TensorSubspace:
        """Return the present subspace, as stored."""
        plan, layout = self.plan, self.layout
        assert layout.basis is not None
        read: dict[str, Tensor] = {}
        for name, shape in plan.factor_shapes().items():
            stored = layout.basis.read(states.parts_of(self.state, name, None), shape).to(layout.dtype)
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
            storage.write_(states.parts_of(self.state, name, None), plan.pairs(factor).contiguous())

    def _schedule(self, step: int) -> None:
        gap, group = self.group["update_proj_gap"], self.group
        self.set_counter("next_refresh", next_refresh(step, self.turn, gap, stagger=group["stagger"], early=False))
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
                    parts = states.parts_of(self.state, name, None)
                    shape = self.layout.moment_shapes[name]
                    zeros = torch.zeros(shape, dtype=self.layout.dtype, device=numbers.device)
                    self.layout.moments[name].write_(parts, zeros)
            self.set_counter("sparse_step", 0)

    def _sparse_index(self, device: torch.device) -> Tensor:
        if self.plan.stores_sparse_index:
            return self.state["sparse_index"].long()
        numel = 1
        for size in self.plan.shape:
            numel *= size
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

    def update_(self, weight: Tensor, core: Tensor, sparse: Tensor | None, rounding: Rounding) -> None:
        """Run the rule on core and sparse branch and write the weight.

        Args:
            weight: the parameter's data, contiguous; written in place.
            core: of this step's gradient.
            sparse: (K,) entries of the sparse branch, or None.
            rounding: key of the random bits of this step.
        """
        plan, group = self.plan, self.group
        direction = self.subspace().project_back(self._direction("", core, rounding))
        direction = direction * (plan.auto_scale if group["scale"] == "auto" else group["scale"])
        if sparse is not None:
            entries = self._direction("sparse_", sparse, rounding) * group["sparse_weight"]
            direction.view(-1).index_add_(0, self._sparse_index(weight.device), entries)
        self.set_counter("step", self.counter("step") + 1)
        write_direction_(weight, plan.pairs(direction), group, rounding)

    def _direction(self, branch: str, numbers: Tensor, rounding: Rounding) -> Tensor:
        """Run the rule on one branch and store its moments."""
        plan, group = self.plan, self.group
        counter = "sparse_step" if branch else "moment_step"
        step = self.counter(counter) + 1
        moments = self._moments(branch)
        direction = rule_of(plan, group).direction(plan.pairs(numbers), moments, step, group)
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
                parts = states.parts_of(self.state, name, None)
                found[name.removeprefix(branch)] = storage.read(parts, self.layout.moment_shapes[name]).to(
                    self.layout.dtype
                )
        return found

    def _write_moments(self, branch: str, moments: Moments, rounding: Rounding) -> None:
        for number, (name, values) in enumerate(moments.items(), rounding.tensor + (5 if branch else 1)):
            parts = states.parts_of(self.state, branch + name, None)
            dense = parts.get("")
            if dense is not None and dense.dtype == torch.bfloat16:
                write_(dense, values, replace(rounding, tensor=number), 0)
            else:
                self.layout.moments[branch + name].write_(parts, values)
        if not branch:
            self._carried = None

    def store_carried(self, rounding: Rounding) -> None:
        """Store the moments of a refresh that the update follows only later."""
        if self._carried is not None:
            self._write_moments("", self._carried, replace(rounding, tensor=_CARRY))

    def _numbers(self, grad: Tensor) -> Tensor:
        return self.plan.tensor_of(grad, self.layout.dtype)


class TensorSum:
    """The core, and the sparse entries, of the gradients of one tensor, summed over micro-batches.

    A due refresh takes the gradient of the first micro-batch: the sum itself never exists.

    Args:
        tensor: the projected tensor.
        rounding: key of the random bits of the step.
    """

    def __init__(self, tensor: ProjectedTensor, rounding: Rounding) -> None:
        self.tensor, self.layout, self.rounding = tensor, tensor.layout, rounding
        self.core: Tensor | None = None
        self.sparse: Tensor | None = None

    def add(self, grad: Tensor) -> None:
        """See `GradientSum.add`."""
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

    def reduce(self, all_reduce: Callable[[Tensor, Mapping[str, Any]], None], group: Mapping[str, Any]) -> None:
        """See `GradientSum.reduce`."""
        for one in self.tensors():
            all_reduce(self.tensor.plan.pairs(one), group)

    def update_(self, weights: list[Tensor], factor: float) -> int:
        """Make the step; return 1 if the sum is not finite and the tensor was left out, else 0."""
        assert self.core is not None
        if not all(bool(one.isfinite().all()) for one in self.tensors()):
            return 1
        sparse = None if self.sparse is None else self.sparse * factor
        (weight,) = weights
        self.tensor.update_(weight, self.core * factor, sparse, self.rounding)
        return 0

    def tensors(self) -> Iterable[Tensor]:
        """See `GradientSum.tensors`."""
        return [one for one in (self.core, self.sparse) if one is not None]


def needs_whole_gradient(layout: Layout, state: states.State, *, is_shared: bool) -> bool:
    """Say whether a projected tensor sums up whole gradients in its next step instead of cores.

    Ranks that follow a gradient wait for it. Bases that are due must be those of all processes: they are fitted to the
    mean of the whole gradients, as an ordinary step fits them; between refreshes cores are all that is exchanged.

    Args:
        layout: of a projected tensor.
        state: its state, empty before the first step.
        is_shared: whether other processes have other gradients of the same parameter.
    """
    if is_open(layout):
        return True
    counters = ("step", "next_refresh")
    step, due = (states.read_counter(state, name, None) for name in counters) if state else (0, 0)
    return is_shared and step >= due


# ---- arithmetic


class ComplexAdamWRule:
    """Adam on pairs of reals with one second moment for each complex number: ``v = b2 v + (1 - b2) |g|^2``.

    A step then turns with the gradient's phase, has modulus about 1, and does not depend on the phases of basis
    columns. torch.optim takes a complex number for two reals: its steps have moduli up to sqrt(2), so its learning
    rates are about sqrt(2) times smaller for the same step.
    """

    is_elementwise = False
    full_rank_rule = "adamw"

    def moments(self, shape: tuple[int, ...], group: Mapping[str, Any]) -> dict[str, Any]:
        """Moments are planned by `TensorPlan`."""
        raise NotImplementedError

    def direction(self, grad: Tensor, moments: Mapping[str, Tensor], step: int, group: Mapping[str, Any]) -> Tensor:
        """See `Rule.direction`; `grad` and the first moment are (.., 2), the second moment (..)."""
        beta1, beta2 = group["betas"]
        exp_avg, exp_avg_sq = moments["exp_avg"], moments["exp_avg_sq"]
        exp_avg.lerp_(grad, 1 - beta1)
        exp_avg_sq.mul_(beta2).add_(grad.square().sum(dim=-1), alpha=1 - beta2)
        correction1, correction2_sqrt = 1 - beta1**step, (1 - beta2**step) ** 0.5
        denominator = exp_avg_sq.sqrt()
        if group["eps_mode"] == "torch":
            denominator.div_(correction2_sqrt).add_(group["eps"]).mul_(correction1)
        else:
            denominator.add_(group["eps"]).mul_(correction1 / correction2_sqrt)
        return exp_avg / denominator.unsqueeze(-1)


def rule_of(plan: TensorPlan, group: Mapping[str, Any]) -> Rule:
    """Return the rule for the numbers of a tensor."""
    name = "sgd" if group["rule"] == "sgd" else "adamw"
    return ComplexAdamWRule() if plan.by_modulus and name == "adamw" else rules.get(name)


def carry(
    policy: str,
    plan: TensorPlan,
    moments: Moments,
    fresh: TensorSubspace,
    old: TensorSubspace,
    step: int,
    betas: tuple[float, float],
) -> int:
    """Bring the moments of a core into a new subspace, in place; return the step count that they then have.

    With "rotate", ``M <- M x_k Q_k`` and, with bias-corrected moments, ``V <- (1 - b2^t) |(v - |m|^2) x_k |Q_k|^2 +
    |m x_k Q_k|^2|``, Q_k the overlap of mode k: the moments of a vector whose coordinates are independent. "align" has
    turned the new bases to the old ones already, so that the moments stay.

    Source: LDAdam, arXiv 2410.16103, section 3, mode by mode.
    """
    if policy in ("keep", "align"):
        return step
    if policy == "reset":
        return moment_policies.get("reset")(moments, (None, None), step, betas)
    overlap = fresh.overlap(old)  # type: ignore[arg-type]
    mean = plan.numbers(moments["exp_avg"])
    turned = fresh.transform(mean, [None if q is None else q.to(mean.dtype) for q in overlap])
    if "exp_avg_sq" in moments:
        exp_avg_sq, correction1, correction2 = moments["exp_avg_sq"], 1 - betas[0] ** step, 1 - betas[1] ** step
        has_pairs = plan.is_complex and not plan.by_modulus
        # A turn mixes the two parts of a number, so that pairs share what one number has.
        total = exp_avg_sq.sum(dim=-1) if has_pairs else exp_avg_sq
        squared = [None if q is None else q.abs().square().to(total.dtype) for q in overlap]
        variance = total / correction2 - (mean.abs() / correction1).square()
        moved = fresh.transform(variance, squared) + (turned.abs() / correction1).square()
        moved = moved.abs_().mul_(correction2)
        exp_avg_sq.copy_((moved / 2).unsqueeze(-1).expand_as(exp_avg_sq) if has_pairs else moved)
    moments["exp_avg"].copy_(plan.pairs(turned))
    return step


def aligned(fresh: TensorSubspace, old: TensorSubspace) -> TensorSubspace:
    """Return the same subspace in the bases that are nearest to the old ones: ``U P`` with the polar factor P of U^H V.

    Source: the orthogonal Procrustes problem, Schoenemann, Psychometrika 31 (1966).
    """
    turned: list[Tensor | None] = []
    for overlap in fresh.overlap(old):  # type: ignore[arg-type]
        left, _, right = torch.linalg.svd(overlap) if overlap is not None else (None, None, None)
        turned.append(None if left is None else left @ right)
    if isinstance(fresh, SliceSubspace):
        (turn,) = turned
        assert turn is not None
        return SliceSubspace(fresh.shape, fresh.basis @ turn)
    factors = [
        u if u is None or turn is None or u.dtype == torch.int64 else u @ turn
        for u, turn in zip(fresh.factors, turned, strict=True)
    ]
    return TuckerSubspace(fresh.shape, tuple(factors))


def choose_entries(magnitude: Tensor, count: int, select: str, key: tuple[int, int, int, int]) -> Tensor:
    """Return ascending indices: the largest magnitudes, or drawn without repeats with probabilities proportional to
    them.

    Args:
        magnitude: (N,) non-negative.
        count: K.
        select: "topk" or "probability".
        key: of the random numbers.
    """
    if select == "probability":
        generator = keyed_generator(*key)
        waiting = torch.empty(magnitude.shape, dtype=torch.float32).exponential_(generator=generator)
        # The K smallest of exponential waiting times with these rates are such a draw (Efraimidis and Spirakis, 2006).
        magnitude = magnitude / waiting.to(magnitude.device)
    return magnitude.topk(count, sorted=False).indices.sort().values


def scattered_entries(numel: int, count: int, key: int) -> Tensor:
    """Return `count` different indices below `numel`, scattered by an affine permutation that follows from `key`.

    Nothing of length `numel` is made: index i is ``(a i + b) mod N`` with a and N coprime.
    """
    stride = key % max(1, numel - 1) + 1
    while gcd(stride, numel) != 1:
        stride += 1
    return (torch.arange(count) * stride + (key >> 32)) % numel


def write_direction_(weight: Tensor, direction: Tensor, group: Mapping[str, Any], rounding: Rounding) -> None:
    """Write ``W <- (1 - lr wd) W - lr D`` (or decay last), 16-bit weights tile by tile.

    Args:
        weight: any dtype, contiguous; complex ones are written as pairs.
        direction: the same numbers, real or as pairs, float32 or float64.
        group: lr, decay and its order.
        rounding: key of the random bits.
    """
    alpha, beta = write_factors(float(group["lr"]), group)
    flat = (torch.view_as_real(weight) if weight.is_complex() else weight).view(-1)
    update = direction.reshape(-1)
    if flat.dtype == update.dtype:
        flat.mul_(beta).add_(update, alpha=alpha)
        return
    for start, stop in tiles(flat.numel(), 2 * SLICE_NUMBERS):
        values = flat[start:stop].to(update.dtype).mul_(beta).add_(update[start:stop], alpha=alpha)
        write_(flat[start:stop], values, rounding, start)


def step_tensor(
    parameter: Tensor, grad: Tensor, layout: Layout, state: states.State, group: Group, turn: tuple[int, int]
) -> None:
    """Make the step of a tensor from a finite gradient, projected or not.

    Args:
        parameter: the parameter; written in place.
        grad: of its shape. Not modified.
        layout: how it is stored.
        state: its state.
        group: its parameter group.
        turn: position among all projected parameters, and their number.
    """
    weight = weight_of(parameter)
    assert isinstance(weight, Tensor)
    rounding = rounding_of(group, layout, states.read_counter(state, "step", None) + 1)
    if layout.rank is None:
        step_dense(weight, grad, layout, state, group, rounding)
    else:
        tensor = ProjectedTensor(layout, state, group, turn)
        tensor.refresh(grad)
        tensor.update_(weight, *tensor.project(grad), rounding)
    copy_back(parameter, weight)


def step_dense(
    weight: Tensor, grad: Tensor, layout: Layout, state: states.State, group: Group, rounding: Rounding
) -> None:
    """Update a complex tensor that keeps moments of its own size, in slices.

    Args:
        weight: its data, contiguous; written in place.
        grad: finite gradient.
        layout: how it is stored.
        state: its state.
        group: its parameter group.
        rounding: key of the random bits of this step.
    """
    plan = layout.tensor
    assert plan is not None
    step = states.read_counter(state, "step", None) + 1
    states.write_counter(state, "step", None, step)
    rule = rule_of(plan, group)
    weight_P2 = (torch.view_as_real(weight) if weight.is_complex() else weight).view(-1, 2)
    grad_P2 = plan.pairs(grad).reshape(-1, 2)
    stored = {name: states.parts_of(state, name, None) for name in layout.moments}
    for start, stop in tiles(len(weight_P2), SLICE_NUMBERS):
        parts, moments = {}, {}
        for name, storage in layout.moments.items():
            width = 2 if layout.moment_shapes[name][-1:] == (2,) and (name == "exp_avg" or not plan.by_modulus) else 1
            parts[name] = storage.slice(stored[name], width * start, width * stop)
            shape = (stop - start, 2) if width == 2 else (stop - start,)
            moments[name] = storage.read(parts[name], shape).to(layout.dtype)
        direction = rule.direction(grad_P2[start:stop].to(layout.dtype), moments, step, group)
        write_moments(layout, parts, moments, rounding, offset=2 * start)
        write_direction_(weight_P2[start:stop], direction, group, replace(rounding, tensor=rounding.tensor))


def _copied(subspace: TensorSubspace) -> TensorSubspace:
    if isinstance(subspace, SliceSubspace):
        return SliceSubspace(subspace.shape, subspace.basis.clone())
    return TuckerSubspace(subspace.shape, tuple(None if u is None else u.clone() for u in subspace.factors))


def add_tensor_table(
    report: Report, layouts: Mapping[Tensor, Layout], states_of: Mapping[Tensor, states.State]
) -> None:
    """Add a table of the projected tensors: ranks, the true share of their entries, bytes, refreshes."""
    rows = []
    for parameter, layout in layouts.items():
        if layout.tensor is not None and layout.rank is not None:
            shape, ranks = (" x ".join(map(str, each)) for each in (layout.tensor.shape, layout.tensor.ranks))
            state = states_of.get(parameter, {})
            refreshes = int(state["refresh_count"]) if "refresh_count" in state else 0
            ranks = ranks or "at the first gradient"
            rows.append([layout.name, shape, ranks, layout.tensor.share, layout.nbytes(), refreshes])
    if rows:
        columns = ["tensor", "shape", "ranks", "entries with moments / all", "state (bytes)", "refreshes"]
        report.add_table("Tensors", columns, rows)
