"""With which weights training begins: pretrained ones, or random ones that somebody asked for.

A shape or a configuration names no weights. Training one where a pretrained model was meant costs days before anybody
sees it, so a recipe has to say it. `tiny` and a configuration inside the recipe are random by what they are.
"""

from collections.abc import Sequence
from typing import Literal

from featherweight.errors import ConfigError
from featherweight.models.place import ALIASES
from featherweight.models.sources import ModelSource, find_place, has_random_weights

Weights = Literal["pretrained", "random"] | None
"""What a recipe says of the weights at the start; None: what the model has."""


def begins_pretrained(source: ModelSource, weights: Weights) -> bool:
    """Tell whether training begins with the weights of a trained model.

    A shape of which nothing is said stands for the pretrained model of that shape: a plan is made for that one.

    Raises:
        ConfigError: if there is no such model.
    """
    if weights is not None:
        return weights == "pretrained"
    return _is_shape(source) or not has_random_weights(source)


def check_weights(source: ModelSource, weights: Weights, *, adapters: Sequence[str] = (), where: str) -> None:
    """Refuse weights that nobody chose, that are not there, or that an adapter cannot start from.

    Args:
        source: which model.
        weights: what the recipe says of them.
        adapters: names of methods that change little of a model, such as LoRA.
        where: opens a message, such as "task chat".
    Raises:
        ConfigError: if training should not begin so.
    """
    has_weights = not has_random_weights(source)
    if not has_weights and (weights == "pretrained" or (weights is None and _is_shape(source))):
        raise ConfigError(
            f"{where}: model={_name(source)} is a shape, of which there are no weights; expected the folder of a "
            "pretrained model, or the wish to train a new one. Put your model's folder into task.model, or set "
            "task.weights: random."
        )
    is_toy = isinstance(source, str) and source in ALIASES
    if adapters and not is_toy and (weights == "random" or not has_weights):
        raise ConfigError(
            f"{where}: methods={', '.join(adapters)} change little of a model, and the weights of "
            f"model={_name(source)} are random; expected pretrained ones. Put your model's folder into task.model "
            f"without weights: random, or leave {' and '.join(adapters)} out to train every weight."
        )


def _is_shape(source: ModelSource) -> bool:
    """Tell whether a name stands for a model that exists with weights elsewhere."""
    return isinstance(source, str) and source not in ALIASES and find_place(source).settings is not None


def _name(source: ModelSource) -> str:
    return source if isinstance(source, str) else str(source.get("model_type", "a configuration"))
