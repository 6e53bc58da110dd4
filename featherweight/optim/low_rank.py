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
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor

from featherweight.config.options import plain_number
from featherweight.errors import CheckpointError, ConfigError, did_you_mean
from featherweight.linalg.outer_product import Gradient
from featherweight.linalg.subspace import MatrixSubspace
from featherweight.optim import state as states
from featherweight.optim.options import LOW_RANK_DEFAULTS, LOW_RANK_KEYS, check_group
from featherweight.optim.param_groups import named_like
from featherweight.optim.policies.lazy import lazy_options
from featherweight.optim.policies.refresh import SIDES, Side
from featherweight.optim.state_check import check_step
from featherweight.optim.state_identity import check_identity, mark, take_mark, with_stored_basis
from featherweight.optim.step import fused_adamw
from featherweight.optim.step.accumulation import CoreSum
from featherweight.optim.step.batched import Batch, can_batch, pays_on
from featherweight.optim.step.dense import fits_torch_kernel, step_dense_, step_fused_
from featherweight.optim.step.finite import are_finite, is_usable
from featherweight.optim.step.layout import Layout, plan_layout, split_of
from featherweight.optim.step.matrix import Group, ProjectedMatrix, rounding_of
from featherweight.optim.step.tensor import ProjectedTensor, TensorSum, add_tensor_table, step_tensor
from featherweight.optim.step.weight_update import copy_back, matrices_of, weight_of
from featherweight.optim.tucker.options import TENSOR_DEFAULTS, projects_tensors, translated
from featherweight.optim.tucker.ranks import is_open, restored, settle
from featherweight.report import Report

logger = logging.getLogger(__name__)

FLIP_SHARE = 0.9
"""`min_memory` takes the cheaper side if it holds this share of the usual side's energy on the next batch."""

OPTIONAL_STATE = ("trial_basis", "exp_avg_full", "grad_norm")
"""State tensors that come and go."""


class _Layerwise(Protocol):
    """What the optimizer needs to know of `featherweight.optim.backward.layerwise`, which stands above it."""

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
        self._layouts: dict[Tensor, Layout] | None = None
        self._turns: dict[int, int] | None = None
        self.layerwise: _Layerwise | None = None
        super().__init__(groups, defaults)
        # What cannot be optimized is refused here; the plan is made again at its first use, as the model's dtype may
        # still change.
        _log_full_rank(type(self).__name__, self.param_groups, self._plan(self.param_groups))

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "skipped_steps": self.skipped_steps}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._layouts = self._turns = None
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
        if self._layouts is not None:  # present plans stay: their states exist
            self._layouts |= self._plan(self.param_groups[-1:], first_index=len(self._layouts))
            self._turns = None

    @property
    def layouts(self) -> dict[Tensor, Layout]:
        """How each parameter is treated, in the order of the groups; decided at the first use."""
        if self._layouts is None:
            self._layouts = self._plan(self.param_groups)
            for group, parameter, _ in _named_parameters(self.param_groups):
                state = self.state.get(parameter, {})
                layout = restored(self._layouts[parameter], state, group)
                self._layouts[parameter] = with_stored_basis(layout, state, group, parameter.dtype)
        return self._layouts

    def _checked_layout(self, parameter: Tensor, grad: Tensor | None = None) -> Layout:
        """Return the layout of a parameter that may be stepped: everything that a kernel believes was compared."""
        layout, state = self.layouts.get(parameter), self.state.get(parameter, {})
        if layout is not None and not state and parameter.shape != layout.shape:
            self.forget_layouts()  # it changed before its first step
            layout = self.layouts[parameter]
        check_step(type(self).__name__, layout, parameter, grad, state)
        assert layout is not None
        if layout.product_dtype != layout.dtype != torch.float64 and parameter.dtype != layout.product_dtype:
            layout = self.layouts[parameter] = replace(layout, product_dtype=layout.dtype)  # bfloat16 weights no more
        return layout

    def forget_layouts(self) -> None:
        """Decide anew how parameters are treated, after one of another shape took a place in a group."""
        self._layouts = self._turns = None

    def _plan(self, groups: list[Group], first_index: int = 0) -> dict[Tensor, Layout]:
        layouts: dict[Tensor, Layout] = {}
        for group, parameter, name in _named_parameters(groups):
            index = first_index + len(layouts)
            layouts[parameter] = plan_layout(name or f"parameter {index}", parameter, group, index)
        names = [layout.name for layout in layouts.values()]
        for key in {key for group in groups for key in group.get("split") or ()}:
            if all(split_of(name, {key: 2}) == 1 for name in names):
                raise ConfigError(
                    f"{type(self).__name__}: split={key!r} matches no parameter; expected the begin or end of a "
                    f"component of a name, in groups with named parameters. {did_you_mean(key, names[:20])}"
                )
        return layouts

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
        pending = [(g, p) for g in self.param_groups for p in g["params"] if p.grad is not None]
        for _, parameter in pending:
            self._checked_layout(parameter, parameter.grad)
            if parameter.grad.is_sparse:
                raise ConfigError(
                    f"{type(self).__name__}: '{self.layouts[parameter].name}' has a gradient of layout=sparse; "
                    "expected a dense gradient. Build the embedding with sparse=False."
                )
        fused: dict[int, list[Tensor]] = defaultdict(list)
        batch = Batch() if any(pays_on(p.device) for _, p in pending) else None
        flags = [self._used_matrices(p, p.grad) for _, p in pending]
        verdicts = zip(pending, *are_finite([p.grad for _, p in pending], flags), strict=True)
        for (group, parameter), is_finite, is_used in verdicts:
            if not is_finite:
                self.skipped_steps += 1
            elif fits_torch_kernel(self.layouts[parameter], parameter, parameter.grad, group):
                fused[id(group)].append(parameter)
            else:
                self.step_gradient(parameter, group, parameter.grad, is_used, batch)
        if batch is not None:
            batch.flush_()
        for group in self.param_groups:
            if members := fused.get(id(group)):
                self._step_fused(members, [p.grad for p in members], group)  # type: ignore[misc]
        return loss

    # ---- one parameter at a time, as layer-wise updates need it

    def step_gradient(
        self,
        parameter: Tensor,
        group: Group,
        grad: Tensor,
        is_used: list[bool] | None = None,
        batch: Batch | None = None,
    ) -> None:
        """Update one parameter from a finite gradient, with the bits of an ordinary step.

        Args:
            parameter: a parameter of `group`.
            group: its group.
            grad: gradient of the parameter's shape; not modified.
            is_used: for each of stacked matrices whether its gradient is not all zero; None reads it from the device.
            batch: takes in what can be updated together with other matrices; None to update at once.
        """
        layout, state = self._checked_layout(parameter, grad), self.state[parameter]
        if is_open(layout):
            layout = self.layouts[parameter] = settle(layout, grad, group)
            if is_open(layout):
                return  # nothing to follow, and no moments that could move
            self.create_state(parameter)
        if not state:
            self.create_state(parameter)
        if layout.tensor is not None:
            step_tensor(parameter, grad, layout, state, group, self._refresh_turn(layout))
        elif fits_torch_kernel(layout, parameter, grad, group):
            self._step_fused([parameter], [grad], group)
        elif layout.rank is None:
            step_dense_(parameter, grad, layout, state, group)
        else:
            self._step_matrices(parameter, grad, layout, state, group, is_used, batch)

    def begin_matrices(
        self, parameter: Tensor, group: Group, grad: Gradient | None
    ) -> tuple[Layout, list[ProjectedMatrix]]:
        """Return what a sum over micro-batches needs to know of a projected parameter.

        Args:
            parameter: a projected parameter of `group`.
            group: its group.
            grad: of the first micro-batch; a `min_memory` parameter chooses its side with it if it is a tensor.
        """
        layout = self._checked_layout(parameter)
        if not self.state[parameter]:
            self.create_state(parameter)
        state = self.state[parameter]
        layout = self._settled_layout(layout, state, group, grad)
        return layout, self._matrices(layout, state, group)

    def begin_tensor(self, parameter: Tensor, group: Group) -> TensorSum:
        """Return an empty sum of the cores of a projected tensor, whose ranks are known."""
        layout = self._checked_layout(parameter)
        if not self.state[parameter]:
            self.create_state(parameter)
        state = self.state[parameter]
        tensor = ProjectedTensor(layout, state, group, self._refresh_turn(layout))
        return TensorSum(tensor, rounding_of(group, layout, tensor.counter("step") + 1))

    def step_cores(self, parameter: Tensor, total: CoreSum | TensorSum, factor: float) -> int:
        """Update one projected parameter from the cores of its gradients.

        Args:
            parameter: a projected parameter.
            total: sums over the micro-batches.
            factor: of the gradient, from clipping.
        Returns:
            Number of matrices that were left out because their sum is not finite.
        """
        self._checked_layout(parameter)
        weight = weight_of(parameter)
        skipped = total.update_(matrices_of(total.layout, weight), factor)
        copy_back(parameter, weight)
        return skipped

    def held_gradients(self) -> Iterable[tuple[Tensor, Tensor]]:
        """Yield (parameter, tensor) for what layer-wise accumulation keeps of gradients besides ``.grad``."""
        return () if self.layerwise is None else self.layerwise.held_tensors()

    def create_state(self, parameter: Tensor) -> None:
        """Create the zero state of one parameter."""
        self._create_state(self.state[parameter], self.layouts[parameter], parameter.device)

    def _create_state(self, state: states.State, layout: Layout, device: torch.device) -> None:
        for name, storage in layout.moments.items():
            shape = layout.moment_shapes[name]
            states.create(state, name, storage, shape, layout.blocks, device=device, dtype=layout.dtype)
        if layout.basis is not None:
            for name, shape in layout.basis_shapes().items():
                states.create(state, name, layout.basis, shape, layout.blocks, device=device, dtype=layout.dtype)
        states.create_counters(state, layout.counters, layout.blocks)
        if layout.queue_size:
            state["similarities"] = torch.zeros((*layout.stack, layout.queue_size), dtype=torch.float32)
        if layout.residual is not None:
            norms = torch.zeros(layout.blocks or 1, dtype=torch.float32, device=device)
            state["residual_norm"] = norms[0] if layout.blocks is None else norms
        if layout.error_feedback:
            state["error"] = torch.zeros(layout.shape, dtype=layout.dtype, device=device)
        if layout.tensor is not None:
            layout.tensor.create_others(state, device)
        elif layout.rank is not None:
            state["side"].fill_(SIDES.index(layout.side))

    # ---- full-rank parameters

    def _step_fused(self, members: list[Tensor], grads: list[Tensor], group: Group) -> None:
        for parameter in members:
            if not self.state[parameter]:
                self.create_state(parameter)
        step_fused_(members, grads, [self.state[p] for p in members], group)

    # ---- projected parameters

    def _matrices(self, layout: Layout, state: states.State, group: Group) -> list[ProjectedMatrix]:
        """Return the projected matrices of a parameter whose state exists."""
        turn, count = self._refresh_turn(layout)
        blocks: Iterable[int | None] = (None,) if layout.blocks is None else range(layout.blocks)
        return [ProjectedMatrix(layout, state, group, block, (turn + (block or 0), count)) for block in blocks]

    def _used_matrices(self, parameter: Tensor, grad: Tensor) -> Tensor | None:
        """Return which of stacked projected matrices have a gradient, as a boolean vector on its device."""
        layout = self.layouts[parameter]
        return None if layout.rank is None or layout.blocks is None else layout.used_matrices(grad)

    def _step_matrices(
        self,
        parameter: Tensor,
        grad: Tensor,
        layout: Layout,
        state: states.State,
        group: Group,
        is_used: list[bool] | None,
        batch: Batch | None,
    ) -> None:
        weight = weight_of(parameter)
        layout = self._settled_layout(layout, state, group, grad)
        weights, grads = matrices_of(layout, weight), layout.matrices(grad)
        # A zero gradient of an only matrix is a gradient; an expert without one was not used.
        if is_used is None:
            is_used = [True] if layout.blocks is None else layout.used_matrices(grad).tolist()
        is_copy = isinstance(weight, Tensor) and not parameter.is_contiguous()  # written back at the end of this call
        if is_copy or not can_batch(layout, group):
            batch = None
        for index, matrix in enumerate(self._matrices(layout, state, group)):
            if not is_used[index]:
                continue
            grad_MN = matrix.corrected(grads[index])
            matrix.refresh(grad_MN)
            subspace = matrix.product_subspace()
            core = subspace.project(grad_MN).to(layout.dtype)
            if batch is not None and fused_adamw.kernel_for(layout, core, group) is None:
                batch.add(matrix, weights[index], core, subspace)
            else:
                matrix.update_(weights[index], core, subspace, grad_MN if matrix.needs_gradient() else None)
        copy_back(parameter, weight)

    def _settled_layout(self, layout: Layout, state: states.State, group: Group, grad: Gradient | None) -> Layout:
        """Return the layout on the side that the state is on, after a `min_memory` parameter has chosen with `grad`."""
        layout = self._on_stored_side(layout, state, group)
        if (
            "trial_basis" in state and isinstance(grad, Tensor) and grad.any() and is_usable(grad)
        ):  # a zero gradient says nothing about a side
            return self._settle_side(layout.matrices(grad)[0], layout, state, group)
        return layout

    def _settle_side(self, grad_MN: Tensor, layout: Layout, state: states.State, group: Group) -> Layout:
        """Judge both sides of a `min_memory` parameter on a batch that neither was fitted to; start anew if it moves.

        The energy on the batch of the refresh says nothing: it is the same for both sides.
        """
        assert layout.alternative is not None
        trial = _one_sided(layout.alternative, state.pop("trial_basis"))
        present = ProjectedMatrix(layout, state, group, None, (0, 1)).subspace()
        if trial.energy(grad_MN) < FLIP_SHARE * present.energy(grad_MN):
            return layout
        moved = layout.on_side(layout.alternative, group)
        device = grad_MN.device
        state.clear()
        self._create_state(state, moved, device)
        return moved

    def _refresh_turn(self, layout: Layout) -> tuple[int, int]:
        """Position of a parameter's first matrix among all projected matrices, and their number."""
        if self._turns is None:
            self._turns, count = {}, 0
            for other in self.layouts.values():
                self._turns[other.index] = count
                count += (other.blocks or 1) if other.rank is not None else 0
            self._matrix_count = count
        return self._turns[layout.index], self._matrix_count

    def _on_stored_side(self, layout: Layout, state: states.State, group: Group) -> Layout:
        side = SIDES[int(state["side"].reshape(-1)[0])]
        return layout if side == layout.side else layout.on_side(side, group)

    # ---- state

    def state_dict(self) -> dict[str, Any]:
        """Return state and groups as torch.optim does; each group also says by which kind of optimizer it is."""
        return mark(super().state_dict(), self)

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
        except (ValueError, KeyError) as error:
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
                self.state[parameter] = {
                    key: value.to("cpu" if key in states.ON_CPU else parameter.device, copy=True)
                    for key, value in saved.items()
                }
        self._check_state()
        if self.layerwise is not None:
            self.layerwise.discard()  # sums in the coordinates of another state

    def _check_state(self) -> None:
        """Compare loaded tensors with what the options of this optimizer would create."""
        for group, parameter, _ in _named_parameters(self.param_groups):
            state = self.state.get(parameter)
            if not state:
                continue
            layout = self.layouts[parameter]
            if layout.rank is not None and "side" in state:
                layout = self._on_stored_side(layout, state, group)
            expected: dict[str, Tensor] = {}
            self._create_state(expected, layout, torch.device("meta"))
            if "trial_basis" in state and layout.alternative is not None:
                (shape,) = layout.on_side(layout.alternative, group).basis_shapes().values()
                expected["trial_basis"] = torch.empty(shape, dtype=layout.dtype, device="meta")
            if "full_period" in state and bool(state["full_period"].any()):
                shape = (layout.rows, layout.columns)
                expected["exp_avg_full"] = torch.empty(shape, dtype=layout.dtype, device="meta")
            if "grad_norm" in state:
                expected["grad_norm"] = torch.empty((), dtype=torch.float32, device="meta")
            for key in sorted(expected.keys() | state.keys()):
                have, want = state.get(key), expected.get(key)
                if have is None or want is None or have.shape != want.shape or have.dtype != want.dtype:
                    raise CheckpointError(
                        f"{type(self).__name__}.load_state_dict: '{layout.name}' has {key}={_describe(have)}; "
                        f"expected {_describe(want)}. Use the rank, proj_type and bits of the run that wrote it."
                    )

    def state_bytes(self) -> int:
        """Return the bytes of the whole state, exact, before the first step too.

        Counts moments, bases and counters of every parameter (a parameter that never gets a gradient never creates its
        state). `rank="auto"` counts the most that its budget allows until the first gradient. `proj_type="min_memory"`
        holds a second basis from its first to its second step, where it may move to a side with fewer bytes;
        `full_rank_probability` holds a moment of the weight's size for as long as a period of full rank lasts.
        """
        total = 0
        for group, parameter, _ in _named_parameters(self.param_groups):
            layout, state = self.layouts[parameter], self.state.get(parameter)
            if state and "side" in state:
                layout = self._on_stored_side(layout, state, group)
            total += layout.nbytes()
            for extra in OPTIONAL_STATE:
                if state and extra in state:
                    total += state[extra].nbytes
        return total

    def gradient_bytes(self) -> int:
        """Return the bytes of gradients at the peak of a step, layer-wise or not, by formula."""
        if self.layerwise is not None:
            return self.layerwise.gradient_bytes()
        parameters = [p for group in self.param_groups for p in group["params"] if p.requires_grad]
        return sum(p.numel() * p.element_size() for p in parameters)

    def report(self) -> Report:
        """Return how the parameters are treated: a table by kind with counts, bytes and refreshes."""
        kinds: dict[str, list[int]] = defaultdict(lambda: [0] * 6)
        gaps: list[int] = []
        for group, parameter, _ in _named_parameters(self.param_groups):
            layout, state = self.layouts[parameter], self.state.get(parameter, {})
            if state and "side" in state:
                layout = self._on_stored_side(layout, state, group)
            refreshes = int(state["refresh_count"].sum()) if "refresh_count" in state else 0
            if "refresh_gap" in state:
                gaps += state["refresh_gap"].clamp_min(group["update_proj_gap"]).reshape(-1).tolist()
            row = (1, parameter.numel(), layout.moment_bytes(), layout.basis_bytes(), layout.nbytes(), refreshes)
            kinds[layout.kind] = [a + b for a, b in zip(kinds[layout.kind], row, strict=True)]
        report = Report(f"{type(self).__name__}")
        columns = ["kind", "tensors", "parameters", "moments (bytes)", "basis (bytes)", "state (bytes)", "refreshes"]
        report.add_table("Parameters by kind", columns, [[kind, *row] for kind, row in sorted(kinds.items())])
        report.add_facts({"state (bytes)": self.state_bytes(), "skipped tensor steps": self.skipped_steps})
        if self.layerwise is not None and (rows := self.layerwise.core_rows()):
            columns = ["parameter", "gradient", "FLOPs of the core / gradient", "core (bytes)", "gradient (bytes)"]
            report.add_table("Core gradients", columns, rows)
        add_tensor_table(report, self.layouts, self.state)
        if gaps:
            report.add_facts({"longest gap (steps)": max(gaps), "mean gap (steps)": sum(gaps) / len(gaps)})
        return report


def _named_parameters(groups: list[Group]) -> Iterator[tuple[Group, Tensor, str]]:
    for group in groups:
        names = group.get("param_names") or [""] * len(group["params"])
        for parameter, name in zip(group["params"], names, strict=True):
            yield group, parameter, name


def _log_full_rank(where: str, groups: list[Group], layouts: Mapping[Tensor, Layout]) -> None:
    """Say once which matrices of low-rank groups keep full-rank moments, because nothing would be saved."""
    wanted = [layouts[p] for group in groups if group["low_rank"] for p in group["params"] if p.ndim >= 2]
    full = [layout for layout in wanted if layout.rank is None]
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


def _one_sided(side: Side, basis: Tensor) -> MatrixSubspace:
    return MatrixSubspace(left=basis, right=None) if side == "left" else MatrixSubspace(left=None, right=basis)


def _describe(tensor: Tensor | None) -> str:
    return "nothing" if tensor is None else f"{tuple(tensor.shape)} {tensor.dtype}"
