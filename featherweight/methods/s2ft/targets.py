"""What S2FT changes in a model, module by module: along which axis, in which units, and how much.

Shapes: C channels of the axis, U units, S selected channels.
"""

import math
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from featherweight.errors import ConfigError, did_you_mean
from featherweight.methods.inrank import has_growing_ranks
from featherweight.methods.low_rank_model import low_rank_modules
from featherweight.methods.s2ft.config import DEFAULT_R_EQUIVALENT, S2FTConfig
from featherweight.methods.s2ft.module_map import default_axis, head_dim, is_attention_output
from featherweight.nn.channel_delta import Axis
from featherweight.nn.low_rank_linear import LowRankLinear


@dataclass(frozen=True)
class Target:
    """One module that is to be changed."""

    module: nn.Module
    """The base layer, without tuners around it."""
    axis: Axis
    channels: int
    """C."""
    other: int
    """Features of the other axis, K."""
    unit: int
    """Channels of a unit: 1, or those of a head."""
    units: int
    """How many units to train."""


def is_conv1d(module: nn.Module) -> bool:
    """Tell whether a layer is GPT-2's, whose weight is stored (in_features, out_features); its int8 form too."""
    return type(module).__name__ in ("Conv1D", "Int8Conv1D")


def linear_features(module: nn.Module) -> tuple[int, int] | None:
    """Return (in_features, out_features) of a linear layer, quantised ones and GPT-2's Conv1D too; None for others."""
    if is_conv1d(module):
        weight: Tensor = module.weight  # type: ignore[assignment]
        return weight.shape[0], weight.shape[1]
    sizes = getattr(module, "in_features", None), getattr(module, "out_features", None)
    if None in sizes or isinstance(module, nn.Bilinear):
        return None
    return int(sizes[0]), int(sizes[1])  # type: ignore[arg-type]


def find_targets(
    model: nn.Module, config: S2FTConfig, matches: Callable[[str], bool], model_config: Mapping[str, Any]
) -> dict[str, Target]:
    """Return the modules that a configuration selects, by full name, in the model's order.

    Args:
        model: looked at through tuners that are there already.
        config: with its target modules resolved.
        matches: tells whether a name is selected.
        model_config: `config.to_dict()` of the model.
    Raises:
        ConfigError: if a selected module is no linear layer, is an embedding's twin, or too many channels are asked
            for.
    """
    low_rank = low_rank_modules(model)
    if has_growing_ranks(model):
        raise ConfigError(
            f"S2FTConfig: model={type(model).__name__} has layers whose ranks still grow (InRank); expected fixed "
            "ones. Call freeze of fw.InRank, or fw.remove, first."
        )
    tied = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    inside: list[str] = []
    targets: dict[str, Target] = {}
    for name, module in model.named_modules():
        if not name or any(name.startswith(prefix) for prefix in inside):
            continue
        base = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
        if isinstance(module, BaseTunerLayer):
            inside.append(f"{name}.")
        if not matches(name):
            continue
        _require_whole(name, base, low_rank)
        sizes = linear_features(base)
        if sizes is None:
            raise ConfigError(
                f"S2FTConfig: target_modules select '{name}', a {type(base).__name__}; expected linear layers. "
                "Name the linear layers inside it, or leave it out with exclude_modules."
            )
        if id(base._parameters.get("weight")) in tied:
            raise ConfigError(
                f"S2FTConfig: target_modules select '{name}', whose weight is also the embedding's; expected "
                "weights of their own. Leave it out, or untie the embeddings first."
            )
        targets[name] = _target(name, base, sizes, config, model_config)
    if config.selection != "stored":
        _require_used_patterns("channel_pattern", config.channel_pattern, list(targets))
        _require_used_patterns("axis_pattern", config.axis_pattern, [name for name, _ in model.named_modules()])
    return targets


def _require_whole(name: str, base: nn.Module, low_rank: Mapping[str, nn.Module]) -> None:
    """Refuse factors of a layer of low rank, and such layers that are no matrix."""
    owner = name.rpartition(".")[0]
    if owner in low_rank and base is not low_rank[owner]:
        raise ConfigError(
            f"S2FTConfig: target_modules select '{name}', a factor of the low-rank layer '{owner}'; expected whole "
            f"layers. Name '{owner.rpartition('.')[2]}' instead, or call fw.merge_low_rank first."
        )
    if isinstance(base, LowRankLinear) and base.activation is not None:
        raise ConfigError(
            f"S2FTConfig: target_modules select '{name}', which has activation={base.activation!r} between its factors "
            "and is no matrix; expected linear layers. Leave it out with exclude_modules, or train the factors "
            "themselves."
        )


def _require_used_patterns(field_name: str, patterns: Mapping[str, Any], names: list[str]) -> None:
    """Refuse patterns that are about no module: their amounts or axes would silently not hold."""
    for pattern in patterns if names else ():  # without targets PEFT says so
        if not any(_matches(pattern, name) for name in names):
            ends = sorted({name.rpartition(".")[2] for name in names})
            raise ConfigError(
                f"S2FTConfig: {field_name}[{pattern!r}]={patterns[pattern]!r} matches no module that is trained; "
                f"expected the end of a name, or a regular expression of one. {did_you_mean(pattern, ends)}"
            )


def _target(
    name: str, base: nn.Module, sizes: tuple[int, int], config: S2FTConfig, model_config: Mapping[str, Any]
) -> Target:
    pattern = matching_pattern(config.axis_pattern, name)
    if pattern is not None:
        axis: Axis = "input" if config.axis_pattern[pattern] == "input" else "output"
    else:
        axis = "input" if _is_all_linear(config) else default_axis(name)
    channels, other = sizes if axis == "input" else sizes[::-1]
    if config.module_channels is not None and config.selection == "stored":
        return Target(base, axis, channels, other, 1, config.module_channels.get(name, 0))
    wanted = wanted_channels(config, name, sizes, axis)
    if config.compat == "official":
        # The paper's code draws whole heads, of values too.
        key = {"o_proj": "num_attention_heads", "v_proj": "num_key_value_heads"}.get(name.rpartition(".")[2])
        heads = model_config.get(key) or model_config.get("num_attention_heads") if key else None
        return Target(base, axis, channels, other, channels // int(heads) if heads else 1, 0)
    if wanted > channels:
        raise ConfigError(
            f"S2FTConfig: {wanted:g} channels of '{name}' are more than its {channels}; expected at most those. "
            "Lower the amount, or set one for this module in channel_pattern."
        )
    size = head_dim(name, model_config, channels) if axis == "input" and config.unit != "channel" else None
    if config.unit == "head" and axis == "input" and size is None and is_attention_output(name):
        warnings.warn(
            f"S2FT: the {channels} inputs of '{name}' are not the heads of the model; single channels are chosen "
            "there.",
            stacklevel=2,
        )
    if size is not None and (config.unit == "head" or wanted >= size):
        units = max(1, int(wanted / size + 1e-9)) if wanted > 0 else 0
        return Target(base, axis, channels, other, size, units)
    rounded = math.ceil(wanted / config.multiple_of - 1e-9) * config.multiple_of
    return Target(base, axis, channels, other, 1, min(rounded, channels))


def wanted_channels(config: S2FTConfig, name: str, sizes: tuple[int, int], axis: Axis) -> float:
    """Return how many channels of a module its configuration asks for, before rounding to units.

    Args:
        config: the configuration.
        name: of the module.
        sizes: (in_features, out_features).
        axis: of the module.
    """
    in_features, out_features = sizes
    channels, other = sizes if axis == "input" else sizes[::-1]
    pattern = matching_pattern(config.channel_pattern, name)
    if pattern is not None:
        amount = config.channel_pattern[pattern]
        return amount * channels if isinstance(amount, float) else amount
    if config.num_channels is not None:
        return config.num_channels
    if config.channel_ratio is not None:
        return config.channel_ratio * channels
    rank = config.r_equivalent if config.r_equivalent is not None else DEFAULT_R_EQUIVALENT
    wanted = rank * (in_features + out_features) / other
    if wanted > channels and config.r_equivalent is not None:
        most = channels * other // (in_features + out_features)
        raise ConfigError(
            f"S2FTConfig: r_equivalent={rank} asks for more parameters than '{name}' has, {out_features} x "
            f"{in_features}; expected at most {most}. Lower it, or set an amount for this module in channel_pattern."
        )
    return min(wanted, channels)


def matching_pattern(patterns: Mapping[str, Any], name: str) -> str | None:
    """Return the first pattern that matches the end of a module's name after a dot, as PEFT reads its patterns."""
    return next((pattern for pattern in patterns if _matches(pattern, name)), None)


def _matches(pattern: str, name: str) -> bool:
    return re.match(rf"(.*\.)?({pattern})$", name) is not None


def _is_all_linear(config: S2FTConfig) -> bool:
    return bool(getattr(config, "_all_linear", False))
