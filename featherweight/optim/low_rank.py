"""The one step: an optimizer whose moments may live in a subspace of the gradient.

`LowRankOptimizer` is the core of every optimizer here. A preset (`galore.py`, `adamw.py`) only chooses defaults; what
varies is looked up by the options of the parameter group: inner rule, side, basis method, moment policy and storage.

For a weight W (M, N) with gradient G and subspace S (left basis P, right basis Q, or both), step t::

    refresh due?  S' = fit(G);  moments <- carry(moments, S'^T S);  S <- S'
    core      = S.project(G)                       P^T G   |  G Q    |  P^T G Q
    direction = rule(core, moments, t)             Adam on the core
    W <- (1 - lr * weight_decay) W - lr * scale * S.project_back(direction)

A parameter without subspace runs the same rule on its gradient, with factor lr.
Source: GaLore, arXiv 2403.03507, Algorithm 2.
"""

import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from featherweight.config.options import plain_number
from featherweight.errors import CheckpointError, ConfigError, did_you_mean
from featherweight.optim import state as states
from featherweight.optim.options import LOW_RANK_DEFAULTS, LOW_RANK_KEYS, TENSOR_DEFAULTS
from featherweight.optim.param_groups import check_group, named_like
from featherweight.optim.policies.lazy import lazy_options
from featherweight.optim.sharding import agree, local_of, shard_of
from featherweight.optim.step.finite import are_finite
from featherweight.optim.step.layout import Layout, split_of
from featherweight.optim.step.plan import plan_step
from featherweight.optim.step.state_check import check_step
from featherweight.optim.step.state_identity import check_identity, mark, take_mark
from featherweight.optim.step.step import Group, Member, Step
from featherweight.optim.step.tensor_layout import TensorLayout
from featherweight.optim.step.together import TogetherInLists
from featherweight.optim.tucker.neuraloperator import translated
from featherweight.optim.tucker.plan import projects_tensors
from featherweight.report import Report

logger = logging.getLogger(__name__)


class _Layerwise(Protocol):
    """What the optimizer needs to know of `featherweight.optim.backward`, which stands above it."""

    def end_window(self) -> None: ...

    def discard(self) -> None: ...

    def held_tensors(self) -> Iterable[tuple[Tensor, Tensor]]: ...

    def gradient_bytes(self) -> int: ...

    def core_rows(self) -> list[list[Any]]: ...

    @property
    def grad_norm(self) -> float | None: ...


class LowRankOptimizer(torch.optim.Optimizer):
    """Base of the optimizers; use a preset such as `GaLoreAdamW` or `AdamW`.

    Behaves as a `torch.optim.Optimizer`: schedulers, closures, hooks, `add_param_group`, `zero_grad`. The state holds
    plain tensors only, so `state_dict()` loads with ``torch.load(weights_only=True)`` and a resumed run is bitwise the
    same. A parameter whose gradient has a NaN or an infinity is left out of the step and counted in `skipped_steps`;
    one of several projected matrices of a parameter (an expert) with an all-zero gradient was not used and is left as
    it is. Options that shape the state (rank, side, bits, residual, rule) hold from the first step on; lr, betas, eps,
    decay, scale, gap, method and policy may change in `param_groups` at any step.

    Args:
        params: tensors, named tensors, or parameter groups as in torch.optim. A group with a low-rank key (`rank`,
            `update_proj_gap`, `scale`, `proj_type`) is projected unless it says `low_rank=False`; a flat list is
            projected wherever a rank is a saving. Further keys of a group: `split={"qkv": 3}` gives each of three row
            blocks (of out_features in nn.Linear) of the parameters whose name has a component that begins or ends with
            "qkv" its own basis; `stacked=False` takes a 3-D parameter for one matrix of its first dimension by the
            rest (a convolution), not for stacked experts.
        defaults: every option, see the presets.
    Raises:
        ConfigError: for an option out of range, or a complex parameter among projected matrices; at a step for a sparse
            gradient.
        ShapeError: if `split` does not divide the rows.
    """

    __arguments__: ClassVar[Any]
    """What a preset declares; see `featherweight.optim.presets.arguments`."""
    skipped_steps: int
    writes_int8_weights = True
    """Lets `featherweight.quant.foreign_write` pass its steps."""

    def __init__(self, params: Iterable[Any], defaults: Mapping[str, Any]) -> None:
        if isinstance(params, Tensor):
            raise ConfigError(
                f"{type(self).__name__}: params=Tensor{tuple(params.shape)} is one tensor; expected tensors or groups. "
                "Put it into a list."
            )
        defaults = {key: plain_number(value) for key, value in {**LOW_RANK_DEFAULTS, **defaults}.items()}
        defaults["lazy"] = lazy_options(defaults["lazy"])
        groups = list(params)
        if groups and not isinstance(groups[0], dict):
            groups = [{"params": groups, "low_rank": defaults["rank"] is not None}]
        self.skipped_steps = 0
        self._steps: dict[Tensor, tuple[Step, tuple[int, int]]] | None = None
        self.layerwise: _Layerwise | None = None
        super().__init__(groups, defaults)
        # What cannot be optimized is refused here; the plan is made again at its first use, as the model's dtype may
        # still change.
        _log_full_rank(type(self).__name__, self.param_groups, self._plan(self.param_groups))

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "skipped_steps": self.skipped_steps}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._steps = None
        self.layerwise = getattr(self, "layerwise", None)

    def add_param_group(self, param_group: Group) -> None:
        """Add a group as in torch.optim; its options are checked at once."""
        if getattr(self, "layerwise", None) is not None:
            raise ConfigError(
                f"{type(self).__name__}: add_param_group is not possible while the optimizer is layer-wise; expected "
                "it before. Call handle.remove(), add the group, then fw.optim.layerwise again."
            )
        given = {key: value if key == "params" else plain_number(value) for key, value in param_group.items()}
        group = named_like(self.param_groups, given)
        if projects_tensors(self.defaults):
            group = translated(type(self).__name__, group)
        group.setdefault("low_rank", any(key in group for key in LOW_RANK_KEYS))
        if "lazy" in group:
            group["lazy"] = lazy_options(group["lazy"])
        check_group(type(self).__name__, {**self.defaults, **group}, self.defaults)
        super().add_param_group(group)
        if self._steps is not None:  # present plans stay: their states exist
            self._steps = self._placed(
                {**{p: step for p, (step, _) in self._steps.items()}, **self._plan(self.param_groups[-1:])}
            )

    # ---- what is decided for each parameter

    def step_of(self, parameter: Tensor) -> Step:
        """Return what makes the steps of a parameter."""
        return self._planned()[parameter][0]

    @property
    def layouts(self) -> dict[Tensor, Layout]:
        """How each parameter is treated, in the order of the groups; decided at the first use."""
        return {parameter: step.layout for parameter, (step, _) in self._planned().items()}

    def forget_layouts(self) -> None:
        """Decide anew how parameters are treated, after one of another shape took a place in a group."""
        self._steps = None

    def member(self, parameter: Tensor, group: Group, grad: Tensor | None = None) -> Member:
        """Return a parameter of a group with its state, after all that a kernel believes of them was compared.

        Args:
            parameter: of `group`.
            group: one of `param_groups`.
            grad: its gradient, if there is one as a whole.
        Raises:
            ConfigError, ShapeError, DeviceError: see `check_step`.
        """
        state, local = self.state.get(parameter, {}), local_of(parameter)
        planned = self._planned().get(parameter)
        if planned is not None and not state and local.shape != planned[0].layout.shape:
            self.forget_layouts()  # it changed before its first step
            planned = self._planned()[parameter]
        check_step(type(self).__name__, None if planned is None else planned[0].layout, local, grad, state)
        assert planned is not None
        return Member(local, self.state[parameter], group, planned[1])

    def _planned(self) -> dict[Tensor, tuple[Step, tuple[int, int]]]:
        if self._steps is None:
            self._steps = self._placed(self._plan(self.param_groups))
            for group, parameter, _ in _named_parameters(self.param_groups):
                self.step_of(parameter).restore(self.state.get(parameter, {}), group, parameter.dtype)
        return self._steps

    @staticmethod
    def _placed(steps: Mapping[Tensor, Step]) -> dict[Tensor, tuple[Step, tuple[int, int]]]:
        """Give each parameter the position of its first matrix among all projected ones, and their number."""
        total, first, placed = sum(step.matrix_count for step in steps.values()), 0, {}
        for parameter, step in steps.items():
            placed[parameter] = step, (first, total)
            first += step.matrix_count
        return placed

    def _plan(self, groups: list[Group]) -> dict[Tensor, Step]:
        steps: dict[Tensor, Step] = {}
        first_index = 0 if self._steps is None else len(self._steps)
        for group, parameter, name in _named_parameters(groups):
            index = first_index + len(steps)
            steps[parameter] = plan_step(name or f"parameter {index}", parameter, group, index)
        names = [step.layout.name for step in steps.values()]
        for key in {key for group in groups for key in group.get("split") or ()}:
            if all(split_of(name, {key: 2}) == 1 for name in names):
                raise ConfigError(
                    f"{type(self).__name__}: split={key!r} matches no parameter; expected the begin or end of a "
                    f"component of a name, in groups with named parameters. {did_you_mean(key, names[:20])}"
                )
        return steps

    def create_state(self, parameter: Tensor) -> None:
        """Create the zero state of one parameter."""
        self.step_of(parameter).layout.create_state(self.state[parameter], parameter.device)

    # ---- the step

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update every parameter that has a gradient.

        Args:
            closure: recomputes the loss and its gradients, as in torch.optim.
        Returns:
            What the closure returned.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if self.layerwise is not None:
            if getattr(self, "found_inf", None) is not None:
                raise ConfigError(
                    f"{type(self).__name__}: GradScaler scales the loss, and a layer-wise update cannot take that "
                    "back; expected bfloat16 or float32 without a scaler. Use bfloat16, or an ordinary optimizer step."
                )
            self.layerwise.end_window()
        pending = [(g, p, local_of(p.grad)) for g in self.param_groups for p in g["params"] if p.grad is not None]
        members = [self.member(parameter, group, grad) for group, parameter, grad in pending]
        steps, grads = [self.step_of(parameter) for _, parameter, _ in pending], [grad for _, _, grad in pending]
        for step, grad in zip(steps, grads, strict=True):
            if grad.is_sparse:
                raise ConfigError(
                    f"{type(self).__name__}: '{step.layout.name}' has a gradient of layout=sparse; "
                    "expected a dense gradient. Build the embedding with sparse=False."
                )
        together = TogetherInLists()
        flags = [step.used_matrices(grad) for step, grad in zip(steps, grads, strict=True)]
        finite, used = are_finite(grads, flags)
        finite = agree([parameter for _, parameter, _ in pending], finite)
        for step, member, grad, is_finite, is_used in zip(steps, members, grads, finite, used, strict=True):
            if is_finite:
                step.step(member, grad, is_used, together)
            else:
                self.skipped_steps += 1
        together.flush_()
        return loss

    def held_gradients(self) -> Iterable[tuple[Tensor, Tensor]]:
        """Yield (parameter, tensor) for what layer-wise accumulation keeps of gradients besides ``.grad``."""
        return () if self.layerwise is None else self.layerwise.held_tensors()

    # ---- state

    def state_dict(self) -> dict[str, Any]:
        """Return state and groups as torch.optim does; each group also says by which kind of optimizer it is.

        Of sharded parameters the state holds DTensors, which torch.distributed.checkpoint reshards.
        """
        packed = mark(super().state_dict(), self)
        numbers = (number for group in packed["param_groups"] for number in group["params"])
        for number, (_, parameter, _) in zip(numbers, _named_parameters(self.param_groups), strict=True):
            shard = shard_of(parameter)
            if shard is not None and number in packed["state"]:
                names = self.step_of(parameter).layout.sharded_names
                packed["state"][number] = shard.distributed_state(packed["state"][number], names)
        return packed

    def load_state_dict(self, state_dict: dict[str, Any], *, adopt: bool = False) -> None:
        """Load a state: tensors keep their stored dtype and move to their parameter's device, counters stay on the CPU.

        As in torch.optim the options of the groups are those of the state, too: learning rate, betas, gaps.

        Args:
            state_dict: from `state_dict` of the same kind of optimizer, of this version or an older one.
            adopt: take over a state of another kind, rank, side or width with the options that it was written with.
        Raises:
            CheckpointError: if the groups do not fit, what shapes the state differs, or a stored tensor has another
                shape than the options give. The optimizer then stays as it was.
        """
        own_groups = self.param_groups
        before = {"state": self.state, "param_groups": own_groups}
        given = state_dict

        def remember(_: torch.optim.Optimizer, state_dict: dict[str, Any]) -> None:
            nonlocal given  # the hooks of the user ran before and may have replaced it
            given = state_dict

        try:
            with (
                self.register_load_state_dict_pre_hook(remember),
                self.register_load_state_dict_post_hook(
                    lambda _: self._restore(given, own_groups, adopt), prepend=True
                ),
            ):
                super().load_state_dict(state_dict)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            self.__setstate__(before)
            raise CheckpointError(
                f"{type(self).__name__}.load_state_dict: {error}; expected the parameter groups of this optimizer. "
                "Build the optimizer with the options of the run that wrote the checkpoint."
            ) from error
        except CheckpointError:
            self.__setstate__(before)
            raise

    def _restore(self, state_dict: dict[str, Any], own_groups: list[Group], adopt: bool) -> None:
        """Take over the state as it was saved.

        torch casts floating-point state to the weight's dtype; codes, scales and float32 moments of bf16 weights must
        stay. It also moves everything beside the weight; counters must stay on the CPU.
        """
        kind = take_mark(self.param_groups)
        for group in self.param_groups:
            if "low_rank" in group:
                known = {**LOW_RANK_DEFAULTS, **(TENSOR_DEFAULTS if projects_tensors(group) else {})}
                for key, value in known.items():
                    group.setdefault(key, value)  # an option that came after the state was written
            # torch adds "differentiable" to the defaults, but not to groups.
            if missing := sorted({"low_rank", *self.defaults} - {"differentiable"} - group.keys()):
                raise CheckpointError(
                    f"{type(self).__name__}.load_state_dict: a parameter group is without {missing[0]}; expected a "
                    f"state_dict of {type(self).__name__}. That of galore-torch can be read by load_galore_torch."
                )
        if not adopt:
            check_identity(self, kind, self.param_groups, own_groups)
        saved_ids = [index for group in state_dict["param_groups"] for index in group["params"]]
        parameters = [p for group in self.param_groups for p in group["params"]]
        for saved_id, parameter in zip(saved_ids, parameters, strict=True):
            if saved := state_dict["state"].get(saved_id):
                if (shard := shard_of(parameter)) is not None:
                    saved = shard.local_state(saved, self.step_of(parameter).layout.sharded_names)
                self.state[parameter] = states.restored(saved, parameter.device, type(self).__name__)
        for group, parameter, _ in _named_parameters(self.param_groups):
            if state := self.state.get(parameter):
                self.step_of(parameter).check_state(type(self).__name__, state, group)
        if self.layerwise is not None:
            self.layerwise.discard()  # sums in the coordinates of another state

    def state_bytes(self) -> int:
        """Return the bytes of the whole state, exact, before the first step too.

        Counts moments, bases and counters of every parameter (a parameter that never gets a gradient never creates its
        state). `rank="auto"` counts the most that its budget allows until the first gradient. `proj_type="min_memory"`
        holds a second basis from its first to its second step, where it may move to a side with fewer bytes;
        `full_rank_probability` holds a moment of the weight's size for as long as a period of full rank lasts.
        """
        return sum(
            self.step_of(parameter).nbytes(self.state.get(parameter, {}), group)
            for group, parameter, _ in _named_parameters(self.param_groups)
        )

    def gradient_bytes(self) -> int:
        """Return the bytes of gradients at the peak of a step, layer-wise or not, by formula."""
        if self.layerwise is not None:
            return self.layerwise.gradient_bytes()
        parameters = [p for group in self.param_groups for p in group["params"] if p.requires_grad]
        return sum(local_of(p).numel() * p.element_size() for p in parameters)

    def report(self) -> Report:
        """Return how the parameters are treated: a table by kind with counts, bytes and refreshes."""
        kinds: dict[str, list[int]] = defaultdict(lambda: [0] * 6)
        gaps: list[int] = []
        for group, parameter, _ in _named_parameters(self.param_groups):
            layout, state = self.step_of(parameter).layout, self.state.get(parameter, {})
            refreshes = int(state["refresh_count"].sum()) if "refresh_count" in state else 0
            if "refresh_gap" in state:
                gaps += state["refresh_gap"].clamp_min(group["update_proj_gap"]).reshape(-1).tolist()
            row = (1, parameter.numel(), layout.moment_bytes(), layout.basis_bytes(), layout.nbytes(), refreshes)
            kinds[layout.kind] = [a + b for a, b in zip(kinds[layout.kind], row, strict=True)]
        report = Report(f"{type(self).__name__}")
        columns = ["kind", "tensors", "parameters", "moments (bytes)", "basis (bytes)", "state (bytes)", "refreshes"]
        report.add_table("Parameters by kind", columns, [[kind, *row] for kind, row in sorted(kinds.items())])
        report.add_facts({"state (bytes)": self.state_bytes(), "skipped tensor steps": self.skipped_steps})
        ran = Counter(step.ran for step, _ in self._planned().values() if step.ran)
        if ran:
            report.add_table(
                "Inner updates of the last step", ["computed by", "tensors"], sorted(map(list, ran.items()))
            )
        if self.layerwise is not None and (rows := self.layerwise.core_rows()):
            columns = ["parameter", "gradient", "FLOPs of the core / gradient", "core (bytes)", "gradient (bytes)"]
            report.add_table("Core gradients", columns, rows)
        _add_tensor_table(report, self.layouts, self.state)
        if gaps:
            report.add_facts({"longest gap (steps)": max(gaps), "mean gap (steps)": sum(gaps) / len(gaps)})
        return report


def _named_parameters(groups: list[Group]) -> Iterator[tuple[Group, Tensor, str]]:
    for group in groups:
        names = group.get("param_names") or [""] * len(group["params"])
        for parameter, name in zip(group["params"], names, strict=True):
            yield group, parameter, name


def _log_full_rank(where: str, groups: list[Group], steps: Mapping[Tensor, Step]) -> None:
    """Say once which matrices of low-rank groups keep full-rank moments, because nothing would be saved."""
    wanted = [steps[p] for group in groups if group["low_rank"] for p in group["params"] if p.ndim >= 2]
    full = [step.layout for step in wanted if not step.matrix_count]
    if full:
        logger.warning(
            "%s: %d of %d matrices keep full-rank moments, because the rank is not below their smaller side "
            "(for example '%s' %s). Lower the rank to project them.",
            where,
            len(full),
            len(wanted),
            full[0].name,
            full[0].shape,
        )


def _add_tensor_table(
    report: Report, layouts: Mapping[Tensor, Layout], states_of: Mapping[Tensor, states.State]
) -> None:
    """Add a table of the projected tensors: ranks, the true share of their entries, bytes, refreshes."""
    rows = []
    for parameter, layout in layouts.items():
        if isinstance(layout, TensorLayout):
            shape, ranks = (" x ".join(map(str, each)) for each in (layout.plan.shape, layout.plan.ranks))
            state = states_of.get(parameter, {})
            refreshes = int(state["refresh_count"]) if "refresh_count" in state else 0
            ranks = ranks or "at the first gradient"
            rows.append([layout.name, shape, ranks, layout.plan.share, layout.nbytes(), refreshes])
    if rows:
        columns = ["tensor", "shape", "ranks", "entries with moments / all", "state (bytes)", "refreshes"]
        report.add_table("Tensors", columns, rows)
