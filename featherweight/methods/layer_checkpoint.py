"""Activation checkpointing of the layers of a transformers model, in three ways.

All use torch's checkpoint through the switch that the layers bring along. Together with layers in chunks, a repetition
stops before the output of the feed-forward layer (`featherweight.nn.saved_early`).
"""

import functools
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from featherweight.errors import ConfigError
from featherweight.nn.offload import HostRing

Mode = Literal["selective", "offload"] | bool

_ATTRIBUTE = "_featherweight_checkpoint"
_SWITCH = "gradient_checkpointing"
_FUNCTION = "_gradient_checkpointing_func"
_ATTENTION = (
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention",
)


def checkpoint_layers(model: nn.Module, mode: Mode) -> int:
    """Let each layer of a model keep its input alone.

    Args:
        model: with the layers of transformers.
        mode: True repeats a layer in the backward pass; "selective" also keeps the result of attention, which is then
            not repeated; "offload" moves the inputs to host memory.
    Returns:
        How many layers were changed.
    Raises:
        ConfigError: if the model has no such layers.
    """
    layers = _layers(model)
    if not layers:
        raise ConfigError(
            f"MsT: checkpoint={mode!r} is unknown to {type(model).__name__}; expected a model with the checkpointed "
            "layers of transformers. Use checkpoint=False and torch.utils.checkpoint."
        )
    function = _function(mode, len(layers))
    for layer in layers:
        setattr(layer, _ATTRIBUTE, {name: vars(layer)[name] for name in (_SWITCH, _FUNCTION) if name in vars(layer)})
        setattr(layer, _FUNCTION, function)
        setattr(layer, _SWITCH, True)
    return len(layers)


def restore_layers(model: nn.Module) -> None:
    """Undo `checkpoint_layers`, if it was called."""
    for layer in model.modules():
        previous = vars(layer).get(_ATTRIBUTE)
        if previous is not None:
            for name in (_SWITCH, _FUNCTION):
                vars(layer).pop(name, None)
                if name in previous:
                    setattr(layer, name, previous[name])
            delattr(layer, _ATTRIBUTE)


def _layers(model: nn.Module) -> list[nn.Module]:
    try:
        from transformers.modeling_layers import GradientCheckpointingLayer
    except ImportError:
        return []
    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]


def _function(mode: Mode, count: int) -> Callable[..., Any]:
    if mode == "offload":
        return functools.partial(_offloaded, HostRing(count))
    if mode == "selective":
        contexts = functools.partial(create_selective_checkpoint_contexts, _keep_attention)
        return functools.partial(checkpoint, use_reentrant=False, context_fn=contexts)
    return functools.partial(checkpoint, use_reentrant=False)


def _offloaded(ring: HostRing, function: Callable[..., Any], *args: Any) -> Any:
    # Inside, the checkpoint's own hooks take over, so that the ring sees the inputs alone.
    with ring.storing():
        return checkpoint(function, *args, use_reentrant=False)


def _keep_attention(context: Any, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    is_attention = isinstance(operator, torch._ops.OpOverload) and operator._schema.name.split("::")[-1] in _ATTENTION
    return CheckpointPolicy.MUST_SAVE if is_attention else CheckpointPolicy.PREFER_RECOMPUTE
