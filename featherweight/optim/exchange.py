"""Parameters that others replace, or that get more rows, and the optimizer states that follow.

A new parameter takes the place of the old one in its group, so that options, names, schedulers and the order of a
checkpoint stay. Any optimizer of torch's form is served. What a moment becomes says `policies/moment_growth.py`.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from featherweight.errors import ConfigError, ShapeError
from featherweight.optim.low_rank import LowRankOptimizer
from featherweight.optim.policies.moment_growth import Growth, ShapeChange, moved
from featherweight.optim.step.layout import DenseLayout, Layout, parts_of
from featherweight.unwrap import unwrap_optimizer


@torch.no_grad()
def exchange_parameter(optimizer: Optimizer, old: Tensor, new: nn.Parameter, change: ShapeChange) -> None:
    """Put a parameter of another shape in the place of one, with its state.

    Args:
        optimizer: between two steps; not layer-wise.
        old: a parameter of one of its groups.
        new: on the same device.
        change: how state follows.
    Raises:
        ConfigError: if `old` is in no group, or the optimizer is layer-wise.
    """
    if isinstance(optimizer, LowRankOptimizer):
        _exchange_ours(optimizer, old, new, optimizer.layouts[old], change)
    else:
        _exchange(optimizer, old, new, old.shape, change)


@torch.no_grad()
def adopt_new_rows(optimizer: Any, model: nn.Module | None = None) -> list[str]:
    """Let the state of an optimizer follow parameters that got more rows, as `model.resize_token_embeddings` does.

    Old rows keep their moments, new ones begin with moments of 0 and the mean second moment. What is projected begins
    anew. A parameter that grew in place is found by its state, one that another object replaced (an output head that is
    not tied) by its name in `model`.

    Args:
        optimizer: ours or one of torch's form, between two steps; not layer-wise. Accelerate's wrapper will do.
        model: the model after the change; None if no parameter was replaced.
    Returns:
        Names (or positions) of the parameters whose state follows.
    Raises:
        ShapeError: if a parameter changed in another way than by rows at its end.
        ConfigError: if a replaced parameter cannot be found, or the optimizer is layer-wise.
    Example:
        >>> embedding = nn.Embedding(10, 4)
        >>> optimizer = torch.optim.AdamW(embedding.parameters())
        >>> embedding(torch.tensor([1])).sum().backward()
        >>> optimizer.step()
        >>> embedding.weight.data = torch.cat([embedding.weight.data, torch.zeros(2, 4)])
        >>> adopt_new_rows(optimizer), optimizer.state[embedding.weight]["exp_avg"].shape
        (['parameter 0'], torch.Size([12, 4]))
    """
    optimizer = unwrap_optimizer(optimizer)
    adopted: list[str] = []
    layouts = dict(optimizer.layouts) if isinstance(optimizer, LowRankOptimizer) else {}  # all from before the change
    places = [(group, index) for group in optimizer.param_groups for index in range(len(group["params"]))]
    for position, (group, index) in enumerate(places):
        names, old = group.get("param_names"), group["params"][index]
        name = names[index] if names else f"parameter {position}"
        new = _present(model, names[index] if names else None, old)
        before = _shape_of_state(optimizer.state.get(old), layouts.get(old), old)
        if before is None or (new is old and before == new.shape):
            if new is not old:
                group["params"][index] = new
                adopted.append(name)
            continue
        if new.ndim != len(before) or new.shape[1:] != before[1:] or new.shape[0] < before[0]:
            raise ShapeError(
                f"adopt_new_rows: '{name}' has shape {tuple(new.shape)}, its state that of {tuple(before)}; expected "
                "more rows and nothing else. Build a new optimizer."
            )
        growth = Growth(0, new.shape[0])
        if isinstance(optimizer, LowRankOptimizer):
            _exchange_ours(optimizer, old, new, layouts[old], growth)
        else:
            _exchange(optimizer, old, new, before, growth)
        if new is not old:
            old.grad = None
        elif new.grad is not None and new.grad.shape != new.shape:
            new.grad = None
        adopted.append(name)
    if model is not None:
        _require_all_present(optimizer, model)
    return adopted


def _present(model: nn.Module | None, name: str | None, old: Tensor) -> Any:
    """Return the parameter that has the name of one today."""
    if model is None or name is None:
        return old
    return dict(model.named_parameters()).get(name, old)


def _require_all_present(optimizer: Optimizer, model: nn.Module) -> None:
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    present = {id(p) for p in model.parameters()}
    missing = [name for name, p in model.named_parameters() if p.requires_grad and id(p) not in held]
    if missing and held - present:
        raise ConfigError(
            f"adopt_new_rows: the optimizer lacks '{missing[0]}' of the model and holds parameters that are not in it; "
            "expected groups with names, in which a replaced parameter can be found. Build the optimizer from "
            "model.named_parameters() or fw.optim.param_groups(model)."
        )


def _shape_of_state(state: dict[str, Any] | None, layout: Layout | None, parameter: Tensor) -> torch.Size | None:
    """Return the shape that a parameter had when its state was created; None without a state."""
    if not state:
        return None
    if layout is not None:
        return torch.Size(layout.shape)
    tensors = {key: value for key, value in state.items() if isinstance(value, Tensor) and value.ndim}
    whole = [value.shape for value in tensors.values() if value.ndim == parameter.ndim]
    if whole:  # factored moments have a size of 1 where they are reduced
        return torch.Size(max(sizes) for sizes in zip(*whole, strict=True))
    if "exp_avg_sq_row" in tensors:
        return torch.Size((len(tensors["exp_avg_sq_row"]), len(tensors["exp_avg_sq_col"])))
    return None


def _exchange(optimizer: Optimizer, old: Tensor, new: nn.Parameter, shape: torch.Size, change: ShapeChange) -> None:
    group, index = _place(optimizer, old)
    group["params"][index] = new
    state = optimizer.state.pop(old, None)
    if state:
        entries = {key: moved(key, value, shape, change) for key, value in state.items()}
        if all(value is not None for value in entries.values()):
            optimizer.state[new] = entries


def _exchange_ours(
    optimizer: LowRankOptimizer, old: Tensor, new: nn.Parameter, before: Layout, change: ShapeChange
) -> None:
    group, index = _place(optimizer, old)
    if optimizer.layerwise is not None:
        raise ConfigError(
            f"{type(optimizer).__name__}: a parameter cannot change its shape while the optimizer is layer-wise; "
            "expected an ordinary one. Set layerwise: false."
        )
    state = optimizer.state.pop(old, {})
    group["params"][index] = new
    optimizer.forget_layouts()
    after = optimizer.layouts[new]
    if not state or not (isinstance(before, DenseLayout) and isinstance(after, DenseLayout)):
        return  # moments in a subspace of the old shape begin anew
    moments, shape = {}, torch.Size(before.shape)
    for name, storage in before.moments.items():
        values = storage.read(parts_of(state, name), before.moment_shapes[name])
        moments[name] = moved(name, values, shape, change)
    if any(value is None for value in moments.values()):
        return
    optimizer.create_state(new)
    created = optimizer.state[new]
    for name, storage in after.moments.items():
        storage.write_(parts_of(created, name), moments[name])
    for counter in after.counters:
        created[counter].copy_(state[counter])


def _place(optimizer: Optimizer, parameter: Tensor) -> tuple[dict[str, Any], int]:
    for group in optimizer.param_groups:
        for index, one in enumerate(group["params"]):
            if one is parameter:
                return group, index
    raise ConfigError(
        f"{type(optimizer).__name__}: params lack a parameter of shape {tuple(parameter.shape)} that changes its "
        "shape; expected all of them. Build the optimizer from the model's parameters after fw.apply."
    )
