"""What an adapter trains beside channels: heads (`modules_to_save`) and biases, each kept as a whole tensor.

Where the change of channels is added, a whole tensor takes the place of the base's. As a change it is the difference to
the base: so adapters with weights w add up to ``(1 - sum w) base + sum w tensor`` over those that have it.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn

from featherweight.errors import CheckpointError, ConfigError
from featherweight.methods.peft_adapter import PREFIX

_INNER = re.compile(r"(?:^|\.)(?:original_module|modules_to_save)\.")

_ROUNDING = 1e-12
"""Weights such as 0.1 have no exact sum."""


class Weighted(NamedTuple):
    """The whole tensors of one adapter and its weight in a sum."""

    tensors: Mapping[str, Tensor]
    """By key of the adapter's file."""
    weight: float


def parameter_name(key: str) -> str | None:
    """Return the name that the base model has for a tensor of an adapter's file, or None for a second name of one.

    Example:
        >>> parameter_name("base_model.model.layers.0.o_proj.base_layer.bias")
        'layers.0.o_proj.bias'
    """
    # With bias="all", PEFT writes the biases of a saved head under the names of its wrapper too.
    return None if _INNER.search(key) else key.removeprefix(PREFIX).replace(".base_layer.", ".")


def require_fitting(model: nn.Module, tensors: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """Return the whole tensors by the name of the base's parameter.

    Raises:
        CheckpointError: if the model has no such parameter, or one of another shape.
    """
    known = {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers())}
    fitting = {}
    for key, tensor in tensors.items():
        name = parameter_name(key)
        if name is None:
            continue
        if name not in known or known[name].shape != tensor.shape:
            found = "lacks it" if name not in known else f"has it in shape {tuple(known[name].shape)}"
            raise CheckpointError(
                f"{where}: the adapter trains '{name}' {tuple(tensor.shape)} whole, and this model {found}; expected "
                "the adapter's base with the same head. Load that model by its class, with its number of labels."
            )
        fitting[name] = tensor
    return fitting


@torch.no_grad()
def write_whole_(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Let tensors take the places of a plain model's parameters.

    A head that is tied to an embedding is untied: the adapter trained the head alone.

    Args:
        model: changed in place.
        tensors: by name of the parameter, from `require_fitting`.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    shared = [id(parameter) for parameter in parameters.values()]
    for name, tensor in tensors.items():
        owner, _, last = name.rpartition(".")
        module = model.get_submodule(owner)
        present = getattr(module, last)
        if name in parameters and shared.count(id(present)) > 1:
            setattr(module, last, nn.Parameter(tensor.to(present).clone(), requires_grad=present.requires_grad))
            if getattr(getattr(model, "config", None), "tie_word_embeddings", False):
                model.config.tie_word_embeddings = False  # type: ignore[union-attr]
        else:
            present.copy_(tensor)


def require_finite_weights(weights: Sequence[float]) -> None:
    """Refuse weights of a sum that would make every number of it NaN.

    Raises:
        ConfigError: if one is NaN or infinite.
    """
    if not all(math.isfinite(weight) for weight in weights):
        raise ConfigError(
            f"fuse: weights={list(weights)} are not all finite; expected numbers. Write for example 1, 0.5."
        )


def combined(parts: Sequence[Weighted], base: Mapping[str, Tensor] | None, where: str) -> dict[str, Tensor]:
    """Return the weighted sum of whole tensors, as changes of the base.

    Args:
        parts: adapters and weights.
        base: the base's tensors by parameter name; needed where the weights of those that have a tensor miss 1.
        where: what to call the caller in messages.
    Raises:
        ConfigError: if the base is needed and not given.
    """
    result = {}
    for key in dict.fromkeys(key for part in parts for key in part.tensors):
        having = [part for part in parts if key in part.tensors]
        rest = 1.0 - math.fsum(part.weight for part in having)
        first = having[0].tensors[key]
        total = torch.zeros_like(first, dtype=torch.float64)
        for part in having:
            total += part.weight * part.tensors[key].to(total)
        if abs(rest) > _ROUNDING:
            name = parameter_name(key)
            if name is None or base is None or name not in base:
                raise ConfigError(
                    f"{where}: weights of the adapters that train '{name or key}' whole add up to {1 - rest:g}; "
                    "expected 1, or the base, from which changes are counted. Give base=, or weights whose sum is 1."
                )
            total += rest * base[name].detach().to(total)
        result[key] = total.to(first.dtype)
    return result


# ---- heads inside of a model -----------------------------------------------------------------------------------------


def heads_of(model: nn.Module) -> dict[str, ModulesToSaveWrapper]:
    """Return PEFT's wrappers of whole modules, by the name that the model has for their place."""
    return {name: module for name, module in model.named_modules() if isinstance(module, ModulesToSaveWrapper)}


def require_one_head(model: nn.Module, adapter_names: Sequence[str], where: str) -> None:
    """Refuse adapters of which more than one brings a head of its own for the same place.

    Raises:
        ConfigError: if they do: two heads do not add up by themselves.
    """
    for name, wrapper in heads_of(model).items():
        having = [one for one in adapter_names if one in wrapper.modules_to_save]
        if len(having) > 1:
            raise ConfigError(
                f"{where}: adapters={having} each have a '{name.rpartition('.')[2]}' of their own; expected one that "
                "has it. Call fw.s2ft.fuse to make one adapter of them."
            )


def let_heads_follow(model: nn.Module, acting: Sequence[str]) -> None:
    """Let each saved module be that of the adapter whose channels act now, or the base's; nothing else changes.

    Args:
        model: with adapters.
        acting: the adapters that are merged, or else active; see `require_one_head`.
    """
    for wrapper in heads_of(model).values():
        flags = [(parameter, parameter.requires_grad) for parameter in wrapper.parameters()]
        wrapper.set_adapter([name for name in acting if name in wrapper.modules_to_save], inference_mode=True)
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
