"""How a model knows where its tokens stand: by counting tokens, or the places of its cache, or all rows of a batch.

A row may have padding behind tokens, as an answer has that takes over the row of a probe, only with the first.
"""

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from featherweight.unwrap import unwrap_model

BY_MASK = ("bloom",)
"""Kinds of models that take no positions, but count the tokens of the mask."""
BY_PLACE = ("gpt_neo",)
"""Kinds of models that take positions, but whose windows count places."""
BY_BATCH = ("dynamic", "longrope")
"""Kinds of rotary embeddings whose frequencies change with the longest row of what is read together."""


def counts_tokens(model: Any) -> bool:
    """Tell whether tokens that are masked leave no trace, wherever they stand, and rows do not change each other.

    Args:
        model: a causal language model of transformers, also inside PEFT.
    """
    config = model.config.get_text_config()
    if config.model_type in BY_PLACE or any(kind in BY_BATCH for kind in _rope_types(config)):
        return False
    return config.model_type in BY_MASK or _takes_positions(type(unwrap_model(model, peft=True)).forward)


@functools.cache
def _takes_positions(forward: Callable[..., Any]) -> bool:
    return "position_ids" in inspect.signature(forward).parameters


def _rope_types(config: Any) -> Iterator[str]:
    """Yield the kinds of rotary embeddings, of which some models have one for each kind of layer."""
    for name in ("rope_parameters", "rope_scaling"):
        found = getattr(config, name, None) or {}
        for one in (found, *(value for value in found.values() if isinstance(value, Mapping))):
            yield str(one.get("rope_type", one.get("type", "default")))
