"""Making one adapter out of several.

Changes of channels add up exactly: the union of the channels, and on it the weighted sum. Low-rank factors do not: the
product of sums has cross terms.
Shapes: U channels of the union, K the other axis, A adapters.
Source: arXiv 2412.06289, section 5.3; arXiv 2306.01708 (ties), arXiv 2311.03099 (dare).
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from peft.tuners.tuners_utils import BaseTuner
from torch import Tensor, nn

from featherweight.errors import ConfigError
from featherweight.methods.s2ft.adapter import joined_change
from featherweight.methods.s2ft.base_slices import ChannelChange
from featherweight.methods.s2ft.config import S2FTConfig
from featherweight.methods.s2ft.layer import S2FTLayer
from featherweight.methods.s2ft.switch import require_adapters, require_mergeable
from featherweight.methods.s2ft.whole_tensors import Weighted, combined, heads_of, require_finite_weights

CombinationType = Literal["linear", "ties", "dare_linear", "dare_ties", "magnitude_prune"]
_KINDS = ("linear", "ties", "dare_linear", "dare_ties", "magnitude_prune")


def fuse(
    model: nn.Module,
    adapters: Sequence[str],
    weights: Sequence[float] | None = None,
    *,
    name: str,
    combination_type: CombinationType = "linear",
    density: float | None = None,
    majority_sign_method: Literal["total", "frequency"] = "total",
) -> None:
    """Add an adapter that combines others of a model.

    Saved modules (`modules_to_save`) are summed as changes of the base's, by combination_type="linear" alone.

    Args:
        model: of `peft.get_peft_model`; its active adapters stay active.
        adapters: names of the parts.
        weights: one for each, of any sign; None takes 1 for each.
        name: of the new adapter, which is frozen until it is made active.
        combination_type: linear is exactly the weighted sum of the changes. The others are those of PEFT, on the
            union of
            the channels: they prune each change to `density` first, and ties keep the majority's sign.
        density: share of entries that pruning keeps.
        majority_sign_method: how ties count.
    Raises:
        ConfigError: if an adapter does not exist, the new name is taken, the numbers do not fit, or heads or biases
            cannot be summed.
        CheckpointError: if an adapter is damaged.
        NumericsError: if one holds NaN or infinite numbers.
    Example:
        >>> import peft
        >>> from featherweight.models import load_model
        >>> model = peft.get_peft_model(load_model("tiny"), S2FTConfig(num_channels=8), adapter_name="math")
        >>> model.add_adapter("code", S2FTConfig(num_channels=8, seed=1))
        >>> fuse(model, ["math", "code"], [1.0, 0.5], name="both")
        >>> model.set_adapter("both")
    """
    weights = [1.0] * len(adapters) if weights is None else list(weights)
    if combination_type not in _KINDS or len(weights) != len(adapters) or not adapters:
        raise ConfigError(
            f"fuse: combination_type={combination_type!r} with {len(adapters)} adapters and weights={weights} is not "
            f"possible; expected one of {', '.join(_KINDS)} and one weight for each adapter. Correct them."
        )
    require_finite_weights(weights)
    if (combination_type != "linear") != (density is not None):
        raise ConfigError(
            f"fuse: density={density} does not go with combination_type={combination_type!r}; expected a share for all "
            "but 'linear'. Set it, or leave it out."
        )
    layers = require_adapters(model, adapters, "fuse")
    for one in adapters:
        require_mergeable(model, [one], "fuse")
    heads = _fused_heads(model, adapters, weights, combination_type)
    parts: dict[str, list[ChannelChange]] = {}
    for place, layer in layers.items():
        if name in layer.s2ft_delta:
            raise ConfigError(
                f"fuse: name={name!r} is taken by an adapter of this model; expected a new name. Delete it first, "
                "or choose another."
            )
        found = [
            (layer.change(one), weight)
            for one, weight in zip(adapters, weights, strict=True)
            if one in layer.s2ft_delta
        ]
        if found:
            parts[place] = _scaled(found, combination_type)
    fused = {
        place: joined_change(place, changes)
        if combination_type == "linear"
        else _pruned(place, changes, combination_type, density or 0.0, majority_sign_method)
        for place, changes in parts.items()
    }
    add_changes(model, name, fused, heads)


def _fused_heads(
    model: nn.Module, adapters: Sequence[str], weights: Sequence[float], kind: str
) -> dict[str, dict[str, Tensor]]:
    """Return the tensors of each saved module of the new adapter, by the module's name."""
    fused: dict[str, dict[str, Tensor]] = {}
    for place, wrapper in heads_of(model).items():
        parts = [
            Weighted(wrapper.modules_to_save[one].state_dict(), weight)
            for one, weight in zip(adapters, weights, strict=True)
            if one in wrapper.modules_to_save
        ]
        if parts and kind != "linear":
            raise ConfigError(
                f"fuse: combination_type={kind!r} does not go with '{place}', which the adapters train whole; expected "
                "'linear'. Choose that."
            )
        if parts:
            fused[place] = combined(parts, wrapper.original_module.state_dict(), "fuse")
    return fused


def _scaled(found: list[tuple[ChannelChange, float]], kind: str) -> list[ChannelChange]:
    if kind == "linear":
        return [change._replace(scaling=change.scaling * weight) for change, weight in found]
    # PEFT's functions take the weights themselves; they wait in the field of the scaling.
    return [change._replace(delta=change.delta * change.scaling, scaling=weight) for change, weight in found]


def _pruned(place: str, changes: list[ChannelChange], kind: str, density: float, majority: Any) -> ChannelChange:
    """Combine changes by a rule of PEFT on the union of their channels."""
    from peft.utils import merge_utils

    union = joined_change(place, [change._replace(scaling=1.0) for change in changes])
    places = union.indices.long()
    spread: list[Tensor] = []
    for change in changes:
        dense = torch.zeros_like(union.delta)
        dense[torch.searchsorted(places, change.indices.long())] = change.delta.detach().to(dense)
        spread.append(dense)
    weights = torch.tensor([change.scaling for change in changes], dtype=union.delta.dtype, device=union.delta.device)
    options = {"majority_sign_method": majority} if kind.endswith("ties") else {}
    combined = getattr(merge_utils, kind)(spread, weights, density, **options)
    return union._replace(delta=combined)


def add_changes(
    model: nn.Module,
    name: str,
    changes: dict[str, ChannelChange],
    heads: Mapping[str, Mapping[str, Tensor]] | None = None,
) -> None:
    """Add an adapter with given changes to a model that has S2FT layers; the active adapters stay active.

    Args:
        model: a `PeftModel`, an `S2FTModel`, or a model into which adapters were injected.
        name: of the new adapter.
        changes: by full name of the module.
        heads: tensors of saved modules, by full name of the module.
    """
    heads = heads or {}
    tuner = _tuner_of(model)
    config = S2FTConfig(
        target_modules=sorted(changes),
        num_channels=1,
        multiple_of=1,
        selection={place: change.indices for place, change in changes.items()},
        axis_pattern={place.replace(".", r"\."): change.axis for place, change in changes.items()},
    )
    config.inference_mode = True
    config.modules_to_save = sorted({place.rpartition(".")[2] for place in heads}) or None
    tuner.peft_config[name] = config
    try:
        tuner.inject_adapter(tuner.model, name)
    except Exception:
        tuner.peft_config.pop(name, None)
        raise
    for place, wrapper in heads_of(model).items():
        if place in heads:
            wrapper.modules_to_save[name].load_state_dict(heads[place])
    layers = require_adapters(model, [name], "fuse")
    for place, change in changes.items():
        delta = change.delta.detach()
        parameter = layers[place].s2ft_delta[name]
        parameter.data = (delta * change.scaling if change.scaling != 1.0 else delta).to(parameter.device)
    # The choice itself stands in the layers; what is left says how many channels there are.
    tuner.peft_config[name].selection = "random"


def _tuner_of(model: nn.Module) -> Any:
    for candidate in (model, getattr(model, "base_model", None)):
        if isinstance(candidate, BaseTuner) and candidate.tuner_layer_cls is S2FTLayer:
            return candidate
    raise ConfigError(
        f"fuse: model={type(model).__name__} is not of peft.get_peft_model; expected a PeftModel with S2FT "
        "adapters. Wrap the base with peft.get_peft_model."
    )
