"""What is known of a model without its weights: its size, its limits, its configuration."""

from dataclasses import dataclass
from typing import Any

import torch

from featherweight.models.configuration import new_model, read_configuration
from featherweight.models.place import explained
from featherweight.models.sources import ModelSource, find_place
from featherweight.models.tokenizer import Tokenizer


@dataclass(frozen=True)
class ModelFacts:
    """What is known of a model without loading its weights."""

    name: str
    """The source, as a user wrote it; for a mapping, its model_type."""
    model_type: str
    """Architecture, in the words of `transformers`."""
    parameters: int
    """Number of parameters; a head that is tied to the embedding counts once."""
    vocab_size: int
    """Rows of the embedding."""
    max_position_embeddings: int | None
    """Longest sequence in tokens; None if the architecture knows no limit."""


def model_facts(source: ModelSource, *, tokenizer: Tokenizer | None = None) -> ModelFacts:
    """Return what is known of a model without loading its weights.

    Args:
        source: which model; see `featherweight.models.sources`.
        tokenizer: as for `load_model`.
    Raises:
        ConfigError: if the source does not exist or is no causal language model.
        MissingExtraError: if a package is missing that the source needs.
    Cost: no weights are read or allocated.
    """
    place = find_place(source)
    with explained(place):
        configuration = read_configuration(place, tokenizer)
        with torch.device("meta"):
            model = new_model(configuration)
    text_configuration = configuration.get_text_config()
    embeddings: Any = model.get_input_embeddings()  # type: ignore[operator]
    return ModelFacts(
        name=place.name,
        model_type=configuration.model_type,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        vocab_size=embeddings.num_embeddings,
        max_position_embeddings=getattr(text_configuration, "max_position_embeddings", None),
    )


def model_configuration(source: ModelSource) -> Any:
    """Return the `transformers` configuration of a model; no weights are read.

    Args:
        source: which model; see `featherweight.models.sources`.
    Raises:
        ConfigError: if the source does not exist or is no causal language model.
        MissingExtraError: if a package is missing that the source needs.
    """
    place = find_place(source)
    with explained(place):
        return read_configuration(place, None)
