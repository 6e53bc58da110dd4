"""Decoder layers in two regions of chunks, with attention alone between them.

The first region is all that a layer does before attention (norm, projections, rotary embedding), the second all that it
does afterwards (output projection, residual, norm, feed-forward layer). Both run the layer's own `forward`: the first
stops where the attention function would be called, the second is told what it returned. So nothing of an architecture
is written down here, and a region's numbers are the layer's own.
Shapes: B batch, L sequence, C tokens of a chunk, H heads, K head dimension, D hidden.
Source: arXiv 2407.15892, section 3. Differs from the paper: norms, projections and rotary embedding are cut too.
"""

import copy
import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from featherweight.errors import ConfigError
from featherweight.methods.forward_patch import original_forward, settings_of
from featherweight.methods.layer_arguments import CACHES, PER_TOKEN, bound_arguments, per_token, rebuilt
from featherweight.methods.layer_structure import LayerStructure
from featherweight.nn.chunk_size import ChunkSize, mlp_chunk_size
from featherweight.nn.chunked import chunk_of_module
from featherweight.nn.inner_backward import trainable_parameters

# The name under which transformers finds the function that stops a layer at its attention.
_STOP = "featherweight_stop_at_attention"
_CROSS_ATTENTION = ("encoder_hidden_states",)


@dataclass
class LayerSettings:
    """What a layer in regions needs to know."""

    structure: LayerStructure
    chunk_size: ChunkSize
    accum_dtype: torch.dtype | None

    def positions(self, hidden_BLD: Tensor) -> int:
        """Return how many positions of all rows make a chunk."""
        return _positions(self.chunk_size, hidden_BLD, self.structure.width)


@dataclass
class NormSettings:
    """What a norm in chunks needs to know."""

    chunk_size: ChunkSize
    accum_dtype: torch.dtype | None


class _Reached(Exception):
    """Attention is reached; carries what its function was called with."""

    def __init__(self, states: tuple[Tensor, Tensor, Tensor], options: dict[str, Any]) -> None:
        super().__init__()
        self.states = states
        self.options = options


def layer_forward(layer: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """Run a layer in two regions, or as it was where it is short, generates, or is asked for attention's weights."""
    settings: LayerSettings = settings_of(layer)
    own = original_forward(layer)
    hidden_BLD, arguments = bound_arguments(own, args, kwargs)
    if not _can_cut(layer, settings, hidden_BLD, arguments):
        return own(*args, **kwargs)
    if layer.training and getattr(layer, "gradient_checkpointing", False):
        # As transformers does it: what a cache holds would be written twice.
        arguments = {name: None if name in CACHES else value for name, value in arguments.items()}
        run = functools.partial(_in_regions, layer, settings, own, arguments)
        return layer._gradient_checkpointing_func(run, hidden_BLD)  # type: ignore[operator]
    return _in_regions(layer, settings, own, arguments, hidden_BLD)


def norm_forward(norm: nn.Module, x_BLD: Tensor) -> Tensor:
    """Run a norm in chunks."""
    settings: NormSettings = settings_of(norm)
    own = original_forward(norm)
    if x_BLD.ndim != 3:
        return own(x_BLD)
    size = _positions(settings.chunk_size, x_BLD, width=x_BLD.shape[-1])
    result: Tensor = chunk_of_module(
        norm, own, (x_BLD,), trainable_parameters(norm), dim=1, chunk_size=size, accum_dtype=settings.accum_dtype
    )
    return result


def _positions(chunk_size: ChunkSize, x_BLD: Tensor, width: int) -> int:
    """Return how many positions of all rows make a chunk; all of them where chunks would not pay."""
    rows, length = x_BLD.shape[:2]
    tokens = mlp_chunk_size(rows * length, width, x_BLD.device) if chunk_size == "auto" else chunk_size
    return max(1, tokens // max(1, rows))


def _in_regions(
    layer: nn.Module, settings: LayerSettings, own: Callable[..., Any], arguments: dict[str, Any], hidden_BLD: Tensor
) -> Any:
    attention: Any = getattr(layer, settings.structure.attention)
    size = settings.positions(hidden_BLD)
    names, positions = per_token(arguments)
    cache = _cache(arguments)
    without = {"attention_mask", *CACHES}
    alone = {name: None if name in without else value for name, value in arguments.items() if name not in names}
    options: dict[str, Any] = {}

    def run(hidden_BCD: Tensor, positions_C: tuple[Tensor, ...]) -> Any:
        with _without_checkpoint(layer):
            return own(hidden_BCD, **alone, **rebuilt(names, positions_C))

    def before(hidden_BCD: Tensor, *positions_C: Tensor) -> tuple[Tensor, ...]:
        with _stopping(attention):
            try:
                run(hidden_BCD, positions_C)
            except _Reached as reached:
                options.update(reached.options)
                return tuple(state.transpose(1, 2) for state in reached.states)
        raise ConfigError(
            f"MsT: tokenwise=True does not fit {type(layer).__name__}, whose attention does not call the attention "
            "function of transformers; expected a layer that does. Use tokenwise=False."
        )

    def after(hidden_BCD: Tensor, heads_BCN: Tensor, *positions_C: Tensor) -> Any:
        result = settings.structure.rule.finish(attention, heads_BCN.contiguous())  # GPT-2 takes a view of it
        with _returning(attention, (result, None)):
            return run(hidden_BCD, positions_C)

    def region(fn: Callable[..., Any], *inputs: Tensor, is_first: bool) -> Any:
        parameters = settings.structure.parameters(layer, before=is_first)
        return chunk_of_module(
            layer, fn, (*inputs, *positions), parameters, dim=1, chunk_size=size, accum_dtype=settings.accum_dtype
        )

    query, key, value = (state.transpose(1, 2) for state in region(before, hidden_BLD, is_first=True))
    if cache is not None:
        key, value = cache.update(key, value, attention.layer_idx)
    options.update((name, arguments[name]) for name in PER_TOKEN if name in options)
    mask = arguments.get("attention_mask")
    heads_BLHK = _attention_function(attention)(attention, query, key, value, mask, **options)[0]
    del query, key, value
    return region(after, hidden_BLD, heads_BLHK.flatten(2), is_first=False)


def _can_cut(layer: nn.Module, settings: LayerSettings, hidden_BLD: Tensor, arguments: dict[str, Any]) -> bool:
    if hidden_BLD.ndim != 3 or settings.positions(hidden_BLD) >= hidden_BLD.shape[1]:
        return False
    if any(arguments.get(name) is not None for name in _CROSS_ATTENTION) or _weights_are_wanted(arguments):
        return False
    cache = _cache(arguments)
    attention: Any = getattr(layer, settings.structure.attention)
    return cache is None or (layer.training and cache.get_seq_length(attention.layer_idx) == 0)


def _cache(arguments: dict[str, Any]) -> Any:
    return next((arguments[name] for name in CACHES if arguments.get(name) is not None), None)


def _weights_are_wanted(arguments: dict[str, Any]) -> bool:
    """Tell whether the model collects the weights of attention for its output."""
    try:
        from transformers.utils.output_capturing import _active_collector
    except ImportError:  # before that, the layers were told
        return bool(arguments.get("output_attentions"))
    return any("attentions" in name for name in _active_collector.get() or ())


def _stop(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **options: Any) -> Any:
    raise _Reached((query, key, value), options)


@contextmanager
def _stopping(attention: Any) -> Iterator[None]:
    """Let an attention module stop where it would call the attention function."""
    from transformers import AttentionInterface

    AttentionInterface.register(_STOP, _stop)
    config = attention.config
    attention.config = copy.copy(config)
    attention.config._attn_implementation_internal = _STOP
    try:
        yield
    finally:
        attention.config = config


@contextmanager
def _returning(attention: nn.Module, result: tuple[Tensor, None]) -> Iterator[None]:
    """Let an attention module return a given result."""
    previous = vars(attention).get("forward")
    attention.forward = lambda *args, **kwargs: result
    try:
        yield
    finally:
        if previous is None:
            del attention.forward
        else:
            attention.forward = previous


@contextmanager
def _without_checkpoint(layer: Any) -> Iterator[None]:
    """Let a layer's own `forward` run as if checkpointing were off: it takes place around the regions."""
    previous = vars(layer).get("gradient_checkpointing")
    layer.gradient_checkpointing = False
    try:
        yield
    finally:
        if previous is None:
            del layer.gradient_checkpointing
        else:
            layer.gradient_checkpointing = previous


def _attention_function(attention: Any) -> Callable[..., Any]:
    """Return the function that an attention module would call."""
    for kind in type(attention).__mro__:
        home = vars(sys.modules[kind.__module__])
        if "ALL_ATTENTION_FUNCTIONS" in home and "eager_attention_forward" in home:
            function: Callable[..., Any] = home["ALL_ATTENTION_FUNCTIONS"].get_interface(
                attention.config._attn_implementation, home["eager_attention_forward"]
            )
            return function
    raise ConfigError(
        f"MsT: tokenwise=True does not fit {type(attention).__name__}, whose module has no table of attention "
        "functions; expected one of transformers. Use tokenwise=False."
    )
