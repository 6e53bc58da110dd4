"""Putting chosen heads and channels of a model side by side, and back, without changing what the model computes.

The tuner does not need it: it gathers channels where they are. It is for engines that want slices. Nothing here gets
into an adapter file.
Shapes: H query heads, G groups of keys and values, K channels of a head, F feed-forward channels.
Source: arXiv 2412.06289, section 3.1.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from featherweight.errors import ConfigError
from featherweight.methods.s2ft.grouped_query import HeadPlan, channel_order, plan_heads
from featherweight.methods.s2ft.module_map import head_dim, is_attention_output


@dataclass(frozen=True)
class Permuted:
    """What was reordered; `unpermute` takes it."""

    orders: Mapping[str, Mapping[int, Tensor]]
    """Full name of a parameter -> dimension -> position -> index as the model was."""
    slices: Mapping[str, tuple[int, int]]
    """Full name of a module -> first and behind the last of its chosen input channels, where they are one run now."""


def permute(model: nn.Module, chosen: Mapping[str, Tensor]) -> Permuted:
    """Reorder heads and feed-forward channels so that the chosen input channels of each module are one run.

    Attention outputs whose chosen channels are no whole heads, or lie in more than two groups partly, stay as they are;
    they are missing in `slices`.

    Args:
        model: plain (no tuners, no quantised weights), with separate or fused projections of transformers.
        chosen: full names of attention outputs and last feed-forward matrices -> their chosen input channels.
    Returns:
        What `unpermute` needs to bring every byte back.
    Raises:
        ConfigError: if the producers of a module's input are not known, or a weight is quantised or of low rank;
            nothing is changed then.
    Cost: pure indexing; each weight concerned is copied once.
    """
    orders: dict[str, dict[int, Tensor]] = {}
    slices: dict[str, tuple[int, int]] = {}
    for name, indices in chosen.items():
        planned = (
            _plan_attention(model, name, indices) if is_attention_output(name) else _plan_mlp(model, name, indices)
        )
        if planned is not None:
            moves, run = planned
            for parameter, dimension, order in moves:
                orders.setdefault(parameter, {})[dimension] = order
            slices[name] = run
    _require_stored(model, orders)
    _apply(model, orders)
    return Permuted(orders, slices)


def unpermute(model: nn.Module, permuted: Permuted) -> None:
    """Undo `permute`, bit by bit."""
    inverse = {
        name: {dimension: order.argsort() for dimension, order in dimensions.items()}
        for name, dimensions in permuted.orders.items()
    }
    _apply(model, inverse)


def _require_stored(model: nn.Module, names: Iterable[str]) -> None:
    """Refuse weights that are no numbers in memory, which could be written into without an effect."""
    for name in names:
        owner, _, last = name.rpartition(".")
        module = model.get_submodule(owner)
        stored = module._parameters.get(last)
        if type(stored) is not nn.Parameter or not stored.is_floating_point():
            raise ConfigError(
                f"permute: '{name}' belongs to a {type(module).__name__} and is no plain floating-point weight; "
                "expected layers that are neither quantised, nor of low rank, nor inside a tuner. Load the plain model."
            )


@torch.no_grad()
def _apply(model: nn.Module, orders: Mapping[str, Mapping[int, Tensor]]) -> None:
    for name, dimensions in orders.items():
        parameter = model.get_parameter(name)
        for dimension, order in dimensions.items():
            parameter.copy_(parameter.index_select(dimension, order.to(parameter.device)).clone())


_Moves = list[tuple[str, int, Tensor]]
_PRODUCERS = {
    "down_proj": ("gate_proj", "up_proj", "gate_up_proj"),
    "c_proj": ("c_fc",),
    "fc2": ("fc1",),
    "dense_4h_to_h": ("dense_h_to_4h",),
    "wo": ("wi", "wi_0", "wi_1"),
    "output.dense": ("intermediate.dense",),
}
_ATTENTION_INPUTS = {
    "q_proj": "queries",
    "k_proj": "groups",
    "v_proj": "groups",
    "q": "queries",
    "k": "groups",
    "v": "groups",
}


def _plan_mlp(model: nn.Module, name: str, indices: Tensor) -> tuple[_Moves, tuple[int, int]]:
    channels = _inputs(model.get_submodule(name))
    is_chosen = torch.zeros(channels, dtype=torch.bool)
    is_chosen[indices.long()] = True
    order = torch.cat([is_chosen.nonzero().flatten(), (~is_chosen).nonzero().flatten()])
    end = "output.dense" if name.endswith("output.dense") else name.rpartition(".")[2]
    root = name[: len(name) - len(end)]
    modules = dict(model.named_modules())
    producers = [f"{root}{one}" for one in _PRODUCERS.get(end, ()) if f"{root}{one}" in modules]
    if not producers:
        raise ConfigError(
            f"permute: producers of '{name}' are not known; expected siblings such as gate_proj and up_proj. "
            "Leave the module out: channels are gathered without any order."
        )
    moves = _columns(model, name, order)
    for producer in producers:
        blocks = 2 if producer.endswith("gate_up_proj") else 1
        moves += _rows(model, producer, torch.cat([order + block * channels for block in range(blocks)]))
    return moves, (0, len(indices))


def _plan_attention(model: nn.Module, name: str, indices: Tensor) -> tuple[_Moves, tuple[int, int]] | None:
    config = model.config.to_dict()  # type: ignore[union-attr, operator]
    channels = _inputs(model.get_submodule(name))
    size = head_dim(name, config, channels)
    if size is None:
        return None
    heads = channels // size
    groups = config.get("num_key_value_heads") or heads
    units = indices.long() // size
    whole = units.unique()
    if len(whole) * size != len(indices):
        return None
    plan = plan_heads(whole.tolist(), heads, groups)
    if plan is None:
        return None
    moves = _columns(model, name, channel_order(plan.queries, size))
    moves += _attention_producers(model, name, plan, size, heads, groups)
    return moves, (plan.start * size, plan.stop * size)


def _attention_producers(model: nn.Module, name: str, plan: HeadPlan, size: int, heads: int, groups: int) -> _Moves:
    parent = re.sub(r"(?:\.output)?\.[^.]+$", "", name)
    if name.endswith("attention.output.dense"):
        parent = f"{parent}.self"
    queries, keys = channel_order(plan.queries, size), channel_order(plan.groups, size)
    total, grouped = heads * size, groups * size
    fused = torch.cat([queries, total + keys, total + grouped + keys])
    tables: dict[str, Tensor] = {
        **{end: queries if kind == "queries" else keys for end, kind in _ATTENTION_INPUTS.items()},
        **{"query": queries, "key": keys, "value": keys, "qkv_proj": fused, "c_attn": fused},
        # Queries, keys and values of a head stand together.
        "query_key_value": channel_order(plan.queries, 3 * size),
        # Norms over a whole projection follow its order; over single heads they have only K entries and stay.
        **{"q_norm": queries, "k_norm": keys},
    }
    modules = dict(model.named_modules())
    moves: _Moves = []
    for end, order in tables.items():
        producer = f"{parent}.{end}"
        if producer in modules and (not end.endswith("_norm") or len(modules[producer].weight) == len(order)):
            moves += _rows(model, producer, order)
    covered = {producer.split(".")[-2] for producer, _, _ in moves}
    if not ({"qkv_proj", "c_attn", "query_key_value"} & covered or len(covered) >= 3):
        raise ConfigError(
            f"permute: producers of '{name}' are not known; expected query, key and value projections beside it. "
            "Leave the module out: heads are gathered without any order."
        )
    return moves


def _inputs(module: nn.Module) -> int:
    weight: Tensor = module.weight  # type: ignore[assignment]
    return weight.shape[0] if type(module).__name__ == "Conv1D" else weight.shape[1]


def _columns(model: nn.Module, name: str, order: Tensor) -> _Moves:
    return [(f"{name}.weight", 0 if type(model.get_submodule(name)).__name__ == "Conv1D" else 1, order)]


def _rows(model: nn.Module, name: str, order: Tensor) -> _Moves:
    module = model.get_submodule(name)
    moves: _Moves = [(f"{name}.weight", 1 if type(module).__name__ == "Conv1D" else 0, order)]
    if getattr(module, "bias", None) is not None:
        moves.append((f"{name}.bias", 0, order))
    return moves
