"""How a state is saved and loaded: which optimizer wrote it, with which options, and whether it fits.

torch lets the options of a loaded state replace those of the optimizer. For a learning rate that is what a resumed run
wants; a rank of 4 where 8 was asked, or GaLore in the place of Apollo, it would never be told of. So each group of a
`state_dict` carries the kind of its optimizer, and a state of another kind, rank, side or width is refused unless the
caller adopts it. States from before this mark are known by their options.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

from featherweight.errors import CheckpointError
from featherweight.optim.options import LOW_RANK_DEFAULTS, TENSOR_DEFAULTS
from featherweight.optim.sharding import shard_of
from featherweight.optim.step.layout import Group
from featherweight.optim.step.plan import named_parameters, plan_step
from featherweight.optim.tucker.plan import projects_tensors

ON_CPU = (
    *("step", "moment_step", "next_refresh", "refresh_count", "side", "full_period"),
    *("refresh_gap", "similarity_count", "sparse_step", "grad_norm", "similarities", "captured", "ranks"),
)
"""State that stays on the CPU, whatever the parameter's device."""

KIND = "kind"
"""Key of the mark in the groups of a state dict; not in those of an optimizer."""

NOT_SHAPING = frozenset({"params", "param_names", "name", KIND})


def kind_of(optimizer: object) -> str:
    """Return the name of an optimizer's class; of a subclass made elsewhere that of ours."""
    ours = (one for one in type(optimizer).__mro__ if one.__module__.startswith("featherweight."))
    return next(ours, type(optimizer)).__name__


def mark(state_dict: dict[str, Any], optimizer: object) -> dict[str, Any]:
    """Write the kind of an optimizer into the groups of its state dict."""
    if not _watch:  # from now on another optimizer may be given this state
        _watch.append(register_optimizer_step_pre_hook(_refuse_our_state))
    for group in state_dict["param_groups"]:
        group[KIND] = kind_of(optimizer)
    return state_dict


def distributed_state(state_dict: dict[str, Any], optimizer: Any) -> dict[str, Any]:
    """Make the states of sharded parameters parts of whole tensors, in place of a state dict."""
    numbers = (number for group in state_dict["param_groups"] for number in group["params"])
    for number, (_, parameter, _) in zip(numbers, named_parameters(optimizer.param_groups), strict=True):
        shard = shard_of(parameter)
        if shard is not None and number in state_dict["state"]:
            layout, state = optimizer.step_of(parameter).layout, state_dict["state"][number]
            state_dict["state"][number] = shard.distributed_state(state, layout.spread)
    return state_dict


_watch: list[Any] = []


def _refuse_our_state(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Refuse the first step of an optimizer of somebody else that was given a state of ours which does not fit it.

    torch compares nothing of a state with its parameters: a fused kernel would write a whole weight's moments into
    those of a core.
    """
    for group in optimizer.param_groups:
        kind = group.pop(KIND, None)  # ours have removed it; what fits is looked at once
        if kind is None:
            continue
        for parameter in group["params"]:
            state = optimizer.state.get(parameter, {})
            if "betas" in group and state and not any(key.startswith("exp_avg") for key in state):
                group[KIND] = kind
                raise CheckpointError(
                    f"{type(optimizer).__name__}.step: a parameter {tuple(parameter.shape)} has no moments in a state "
                    f"of {kind}; expected exp_avg and exp_avg_sq. Build a {kind} and load the state into it, or begin "
                    "with a new state."
                )
            for key, value in state.items():
                if isinstance(value, Tensor) and value.ndim and value.shape != parameter.shape:
                    group[KIND] = kind
                    raise CheckpointError(
                        f"{type(optimizer).__name__}.step: a parameter {tuple(parameter.shape)} has {key}="
                        f"{tuple(value.shape)} from a state of {kind}; expected moments of the parameter's shape. "
                        f"Build a {kind} and load the state into it, or begin with a new state."
                    )


def load_state(
    optimizer: Any, load: Callable[[dict[str, Any]], None], state_dict: dict[str, Any], *, adopt: bool
) -> None:
    """Load a state; see `LowRankOptimizer.load_state_dict`.

    Args:
        optimizer: the `LowRankOptimizer`; stays as it was if the state does not fit.
        load: what torch's own `load_state_dict` does with it.
        state_dict: what is loaded.
        adopt: take over a state of another kind, rank, side or width.
    """
    own_groups = optimizer.param_groups
    before = {"state": optimizer.state, "param_groups": own_groups}
    given = state_dict

    def remember(_: torch.optim.Optimizer, state_dict: dict[str, Any]) -> None:
        nonlocal given  # the hooks of the user ran before and may have replaced it
        given = state_dict

    try:
        with (
            optimizer.register_load_state_dict_pre_hook(remember),
            optimizer.register_load_state_dict_post_hook(
                lambda _: _restore(optimizer, given, own_groups, adopt), prepend=True
            ),
        ):
            load(state_dict)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        optimizer.__setstate__(before)
        raise CheckpointError(
            f"{type(optimizer).__name__}.load_state_dict: {error}; expected the parameter groups of this optimizer. "
            "Build the optimizer with the options of the run that wrote the checkpoint."
        ) from error
    except CheckpointError:
        optimizer.__setstate__(before)
        raise


def _restore(optimizer: Any, state_dict: dict[str, Any], own_groups: Sequence[Group], adopt: bool) -> None:
    """Take over the state as it was saved.

    torch casts floating-point state to the weight's dtype; codes, scales and float32 moments of bf16 weights must
    stay. It also moves everything beside the weight; counters must stay on the CPU.
    """
    where = type(optimizer).__name__
    kinds = [group.pop(KIND, None) for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        if "low_rank" in group:
            known = {**LOW_RANK_DEFAULTS, **(TENSOR_DEFAULTS if projects_tensors(group) else {})}
            for key, value in known.items():
                group.setdefault(key, value)  # an option that came after the state was written
        # torch adds "differentiable" to the defaults, but not to groups.
        if missing := sorted({"low_rank", *optimizer.defaults} - {"differentiable"} - group.keys()):
            raise CheckpointError(
                f"{where}.load_state_dict: a parameter group is without {missing[0]}; expected a state_dict of "
                f"{where}. That of galore-torch can be read by load_galore_torch."
            )
    if not adopt:
        check_identity(optimizer, kinds[0] if kinds else None, optimizer.param_groups, own_groups)
    saved_ids = [index for group in state_dict["param_groups"] for index in group["params"]]
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for saved_id, parameter in zip(saved_ids, parameters, strict=True):
        if saved := state_dict["state"].get(saved_id):
            if (shard := shard_of(parameter)) is not None:
                layout = optimizer.step_of(parameter).layout
                saved = shard.local_state(saved, layout.spread)
            optimizer.state[parameter] = _restored(saved, parameter.device, where)
    for group, parameter, _ in named_parameters(optimizer.param_groups):
        if state := optimizer.state.get(parameter):
            optimizer.step_of(parameter).check_state(where, state, group)
    if optimizer.layerwise is not None:
        optimizer.layerwise.discard()  # sums in the coordinates of another state


def _restored(saved: Mapping[str, Any], device: torch.device, where: str) -> dict[str, Tensor]:
    """Return copies of the saved state of one parameter on the devices where they belong, laid out as kernels want.

    Args:
        saved: from a file, which may be damaged.
        device: of the parameter.
        where: name of the optimizer, for messages.
    Raises:
        CheckpointError: if something is no tensor, or a number of steps is negative: its bias corrections would be NaN.
    """
    for key, value in saved.items():
        if not isinstance(value, Tensor) or (key in ("step", "moment_step") and bool((value < 0).any())):
            described = value.tolist() if isinstance(value, Tensor) else repr(value)[:40]
            raise CheckpointError(
                f"{where}.load_state_dict: {key}={described} is damaged; expected a tensor, and a number of steps "
                "that is not negative. Load another checkpoint."
            )
    return {key: v.to("cpu" if key in ON_CPU else device, copy=True).contiguous() for key, v in saved.items()}


def device_states(optimizer: Any, parameters: Iterable[Tensor]) -> Iterator[Tensor]:
    """Yield the tensors of some parameters' states that are used beside their weights; counters stay on the CPU."""
    for parameter in parameters:
        for key, value in optimizer.state.get(parameter, {}).items():
            if key not in ON_CPU:
                yield value


def check_identity(optimizer: object, kind: str | None, saved: Sequence[Group], own: Sequence[Group]) -> None:
    """Refuse a state of another kind, rank, side or width than an optimizer has.

    Args:
        optimizer: the one that loads.
        kind: the mark of the state; None for one from before there was one.
        saved: groups of the state, over the parameters of the optimizer.
        own: groups of the optimizer before.
    Raises:
        CheckpointError: names what differs, with both values.
    """
    where, ours = f"{type(optimizer).__name__}.load_state_dict", kind_of(optimizer)
    if kind is not None and kind != ours:
        raise CheckpointError(
            f"{where}: the state is one of {kind}; expected one of {ours}. Build a {kind}, or pass adopt=True to go "
            "on with the options of the state."
        )
    for index, (theirs, mine) in enumerate(zip(saved, own, strict=True)):
        keys = sorted((theirs.keys() | mine.keys()) - NOT_SHAPING)
        changed = [key for key in keys if theirs.get(key) != mine.get(key)]
        if not changed or _plans(theirs, theirs) == _plans(theirs, mine):
            continue
        for key in changed:  # the first that makes the difference by itself, else all of them
            if key in mine and _plans(theirs, theirs) != _plans(theirs, {**theirs, key: mine[key]}):
                changed = [key]
                break
        values = ", ".join(f"{key}={theirs.get(key)!r}" for key in changed)
        expected = ", ".join(f"{key}={mine.get(key)!r}" for key in changed)
        raise CheckpointError(
            f"{where}: group {index} of the state has {values}; expected {expected}, as this optimizer was built. "
            "Build it with the values of the state, or pass adopt=True to go on with those."
        )


def _plans(named: Group, options: Group) -> list[Any]:
    """Return how the parameters of a group would be held under some options, and which kind of rule they follow."""
    names = named.get("param_names") or [""] * len(named["params"])
    plans: list[Any] = [projects_tensors(options)]
    for index, (name, parameter) in enumerate(zip(names, named["params"], strict=True)):
        step = plan_step(name, parameter, options, index)
        plans.append((step.layout, step.matrix_count > 0 and options.get("basis_smoothing", 0) > 0))
    return plans
