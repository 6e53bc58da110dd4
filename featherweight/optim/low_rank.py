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

from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from featherweight.config.options import plain_number
from featherweight.errors import ConfigError
from featherweight.optim.groups import completed
from featherweight.optim.options import LOW_RANK_DEFAULTS
from featherweight.optim.policies.lazy import lazy_options
from featherweight.optim.sharding import agree, at_hand
from featherweight.optim.state_dict import distributed_state, load_state, mark
from featherweight.optim.step.adam import TogetherInLists
from featherweight.optim.step.check import are_finite, check_step
from featherweight.optim.step.layout import Group, Layout, Member
from featherweight.optim.step.plan import Placed, log_full_rank, named_parameters, placed, plan_steps
from featherweight.optim.step.step import Step
from featherweight.optim.summary import summary_of
from featherweight.report import Report
from featherweight.unwrap import local_of


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
        self._steps: dict[Tensor, Placed] | None = None
        self.layerwise: Any = None
        """The running `featherweight.optim.backward.updates.Layerwise`, which stands above; None without one."""
        super().__init__(groups, defaults)
        # What cannot be optimized is refused here; the plan is made again at its first use, as the model's dtype may
        # still change.
        planned = self._plan(self.param_groups)
        self._is_projecting = any(step.matrix_count for step in planned.values())
        log_full_rank(type(self).__name__, self.param_groups, planned)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "skipped_steps": self.skipped_steps}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._steps = None
        self._is_projecting = getattr(self, "_is_projecting", False)
        self.layerwise = getattr(self, "layerwise", None)

    def add_param_group(self, param_group: Group) -> None:
        """Add a group as in torch.optim; its options are checked at once."""
        if getattr(self, "layerwise", None) is not None:
            raise ConfigError(
                f"{type(self).__name__}: add_param_group is not possible while the optimizer is layer-wise; expected "
                "it before. Call handle.remove(), add the group, then fw.optim.layerwise again."
            )
        group = completed(type(self).__name__, param_group, self.param_groups, self.defaults)
        super().add_param_group(group)
        if self._steps is not None:  # present plans stay: their states exist
            present = {parameter: step for parameter, (step, _) in self._steps.items()}
            self._steps = placed({**present, **self._plan(self.param_groups[-1:], present)})

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
        state, local = self.state.get(parameter, {}), self._at_hand(parameter, parameter)
        planned = self._planned().get(parameter)
        if planned is not None and not state and local.shape != planned[0].layout.shape:
            self.forget_layouts()  # it changed before its first step
            planned = self._planned()[parameter]
        check_step(type(self).__name__, None if planned is None else planned[0].layout, local, grad, state)
        assert planned is not None
        return Member(local, self.state[parameter], group, planned[1])

    def _at_hand(self, parameter: Tensor, tensor: Any) -> Any:
        """Return what this process has of a parameter or its gradient: all of it, unless it is sharded.

        Raises:
            ConfigError: for the gradient of an int8 weight of which it has rows.
        """
        planned = self._planned().get(parameter)
        if planned is None or planned[0].layout.shard is None:
            return tensor
        if tensor is not parameter and planned[0].layout.shard.rows is not None:
            raise ConfigError(
                f"{type(self).__name__}: '{planned[0].layout.name}' has int8 codes of which each process holds rows, "
                "and its gradient is that of one process; expected layer-wise updates, which sum it as a core. Call "
                "fw.optim.layerwise(model, optimizer), with fw.CoreGradient(), or use sharding ddp."
            )
        return at_hand(parameter) if tensor is parameter else local_of(tensor)

    def _planned(self) -> dict[Tensor, Placed]:
        if self._steps is None:
            if self._is_projecting:
                self._refuse_flat_groups()
            self._steps = placed(self._plan(self.param_groups))
            for group, parameter, _ in named_parameters(self.param_groups):
                self.step_of(parameter).restore(self.state.get(parameter, {}), group, parameter.dtype)
        return self._steps

    def _refuse_flat_groups(self) -> None:
        """Refuse groups in which matrices were replaced by vectors: full-rank AdamW would go on in silence."""
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        if parameters and all(parameter.ndim < 2 for parameter in parameters):
            raise ConfigError(
                f"{type(self).__name__}: params hold {tuple(parameters[0].shape)} and no matrix any more, as an engine "
                "that flattens (DeepSpeed ZeRO) leaves them; expected the parameters that the optimizer was built "
                'with. Give the bare model to fw.distributed.shard(model, "fsdp2") (FSDP2).'
            )

    def _plan(self, groups: list[Group], present: Mapping[Tensor, Step] | None = None) -> dict[Tensor, Step]:
        return plan_steps(type(self).__name__, groups, present or {})

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
        present = [(g, p) for g in self.param_groups for p in g["params"] if p.grad is not None]
        pending = [(group, parameter, self._at_hand(parameter, parameter.grad)) for group, parameter in present]
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
        if any(step.layout.shard is not None for step in steps):
            finite = agree([parameter for _, parameter in present], finite)
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
        return distributed_state(mark(super().state_dict(), self), self)

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
        load_state(self, super().load_state_dict, state_dict, adopt=adopt)

    def state_bytes(self) -> int:
        """Return the bytes of the whole state, exact, before the first step too.

        Counts moments, bases and counters of every parameter (a parameter that never gets a gradient never creates its
        state). `rank="auto"` counts the most that its budget allows until the first gradient. `proj_type="min_memory"`
        holds a second basis from its first to its second step, where it may move to a side with fewer bytes;
        `full_rank_probability` holds a moment of the weight's size for as long as a period of full rank lasts.
        """
        return sum(
            self.step_of(parameter).nbytes(self.state.get(parameter, {}), group)
            for group, parameter, _ in named_parameters(self.param_groups)
        )

    def gradient_bytes(self) -> int:
        """Return the bytes of gradients at the peak of a step, layer-wise or not, by formula."""
        if self.layerwise is not None:
            return self.layerwise.gradient_bytes()
        parameters = [p for group in self.param_groups for p in group["params"] if p.requires_grad]
        return sum(at_hand(p).numel() * p.element_size() for p in parameters)

    def report(self) -> Report:
        """Return how the parameters are treated: a table by kind with counts, bytes and refreshes."""
        return summary_of(self)
