"""What a saved state says of itself: which optimizer wrote it, and with which options that shape the state.

torch lets the options of a loaded state replace those of the optimizer. For a learning rate that is what a resumed run
wants; a rank of 4 where 8 was asked, or GaLore in the place of Apollo, it would never be told of. So each group of a
`state_dict` carries the kind of its optimizer, and a state of another kind, rank, side or width is refused unless the
caller adopts it. States from before this mark are known by their options.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

from featherweight.errors import CheckpointError
from featherweight.optim.step.plan import plan_step
from featherweight.optim.tucker.plan import projects_tensors

KIND = "kind"
"""Key of the mark in the groups of a state dict; not in those of an optimizer."""

Group = Mapping[str, Any]

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
            for key, value in optimizer.state.get(parameter, {}).items():
                if isinstance(value, Tensor) and value.ndim and value.shape != parameter.shape:
                    group[KIND] = kind
                    raise CheckpointError(
                        f"{type(optimizer).__name__}.step: a parameter {tuple(parameter.shape)} has {key}="
                        f"{tuple(value.shape)} from a state of {kind}; expected moments of the parameter's shape. "
                        f"Build a {kind} and load the state into it, or begin with a new state."
                    )


def take_mark(groups: Sequence[dict[str, Any]]) -> str | None:
    """Remove the mark from loaded groups and return it; None for a state from before there was one."""
    kinds = [group.pop(KIND, None) for group in groups]
    return kinds[0] if kinds else None


def check_identity(optimizer: object, kind: str | None, saved: Sequence[Group], own: Sequence[Group]) -> None:
    """Refuse a state of another kind, rank, side or width than an optimizer has.

    Args:
        optimizer: the one that loads.
        kind: the mark of the state.
        saved: groups of the state, over the parameters of the optimizer.
        own: groups of the optimizer.
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
