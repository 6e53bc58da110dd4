"""What a decoder layer is called with: everything by name, and apart from it what holds something for each token."""

import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor

PER_TOKEN = ("position_embeddings", "position_ids")
"""Arguments of a layer that hold something for each token, along axis 1."""
CACHES = ("past_key_values", "layer_past")
"""Arguments in which a layer is given the keys and values of earlier calls."""


def bound_arguments(
    own: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Tensor, dict[str, Any]]:
    """Return the hidden states and every other argument by name, however they were given."""
    signature = inspect.signature(own)
    arguments = dict(signature.bind(*args, **kwargs).arguments)
    for parameter in signature.parameters.values():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            arguments.update(arguments.pop(parameter.name, {}))
    hidden_BLD = arguments.pop(next(iter(signature.parameters)))
    return hidden_BLD, arguments


def per_token(arguments: dict[str, Any]) -> tuple[dict[str, int], tuple[Tensor, ...]]:
    """Take the arguments that are cut like the tokens out; return how many tensors each has (0: a bare one)."""
    names: dict[str, int] = {}
    tensors: list[Tensor] = []
    for name in PER_TOKEN:
        value = arguments.get(name)
        if isinstance(value, Tensor):
            names[name] = 0
            tensors.append(value)
        elif isinstance(value, tuple | list) and value:
            names[name] = len(value)
            tensors.extend(value)
    return names, tuple(tensors)


def rebuilt(names: dict[str, int], tensors: tuple[Tensor, ...]) -> dict[str, Any]:
    """Return arguments by name again, of what `per_token` has taken out (and somebody has cut)."""
    rest = list(tensors)
    found: dict[str, Any] = {}
    for name, count in names.items():
        found[name] = tuple(rest[:count]) if count else rest[0]
        del rest[: max(count, 1)]
    return found
