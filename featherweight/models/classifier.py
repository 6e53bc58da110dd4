"""Models with a classification head: any encoder or decoder of transformers, a new head on pretrained weights.

The body comes from wherever a user has it (`featherweight.models.sources`); the head is new unless the model was
trained to tell the same classes apart.
"""

from collections.abc import Iterable, Sequence
from typing import Any, cast

import torch
from torch import nn

from featherweight.errors import ConfigError
from featherweight.methods.low_rank_model import build_low_rank, load_low_rank, record_in_config
from featherweight.methods.sealed_folder import RECORD
from featherweight.models.configuration import read_configuration
from featherweight.models.gguf import dequantized
from featherweight.models.place import Place, check_complete, explained
from featherweight.models.sources import ModelSource, find_place
from featherweight.models.tokenizer import Tokenizer

KIND = "sequence classification model"
_POSITIONS_FROM_PADDING = (
    "roberta",
    "xlm-roberta",
    "xlm-roberta-xl",
    "camembert",
    "mpnet",
    "longformer",
    "data2vec-text",
)
"""Architectures whose first position is that behind the padding id, so that fewer tokens fit than positions exist."""


def load_classifier(
    source: ModelSource,
    class_names: Sequence[str] | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    tokenizer: Tokenizer | None = None,
    seed: int = 0,
    random_weights: bool = False,
) -> nn.Module:
    """Return a model that tells classes of texts apart, on the CPU, in training mode.

    Args:
        source: which model; see `featherweight.models.sources`.
        class_names: in the order of the logits, kept in config.id2label; the head is new unless the source has one of
            as many classes. None: the source has a trained head, with names.
        dtype: of the weights.
        tokenizer: gives the padding id, by which a decoder finds the end of a text.
        seed: of new weights. The global random state is left as it is.
        random_weights: give a pretrained model new weights instead of its own.
    Returns:
        A `transformers.PreTrainedModel`; `model(input_ids, attention_mask=...).logits` is (B, classes).
    Raises:
        ConfigError: if the source does not exist, is damaged, has no architecture with such a head, lacks weights of
            its body, or (without `class_names`) has no trained head.
    """
    from transformers import AutoModelForSequenceClassification

    place = find_place(source)
    with torch.random.fork_rng(devices=[]), explained(place, KIND):
        torch.manual_seed(seed)
        configuration = _configuration(place, class_names, tokenizer)
        if place.settings is not None or random_weights:
            model: Any = AutoModelForSequenceClassification.from_config(configuration, dtype=dtype)
        elif place.gguf_file:
            model = _on_body(dequantized(place, dtype), configuration, dtype)
        elif getattr(configuration, RECORD, None) is not None:
            model = load_low_rank(str(place.path), dtype=dtype)
            if len(trained_classes(model.config) or ()) == configuration.num_labels:
                model.config = configuration
            else:
                model = _on_body(model, configuration, dtype)
            record_in_config(model)
        else:
            model, loading = AutoModelForSequenceClassification.from_pretrained(
                **place.arguments,
                config=configuration,
                dtype=dtype,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
            lacking = {*loading["missing_keys"], *(entry[0] for entry in loading["mismatched_keys"])}
            check_complete(place, lacking if class_names is None else _of_body(model, lacking), KIND)
    return cast(nn.Module, model.train())


def new_classifier(configuration: Any) -> nn.Module:
    """Return a classifier of a configuration, with random weights on whatever device or mode is on."""
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_config(configuration)
    if record := getattr(configuration, RECORD, None):
        known = {name for name, _ in model.named_modules()}  # a language model's head is not among them
        ranks = {name: rank for name, rank in record["rank_pattern"].items() if name in known}
        build_low_rank(model, {**record, "rank_pattern": ranks})
    return cast(nn.Module, model)


def classifier_configuration(
    source: ModelSource, class_names: Sequence[str] | None = None, *, tokenizer: Tokenizer | None = None
) -> Any:
    """Return the configuration of `load_classifier`'s model; no weights are read.

    Raises:
        ConfigError: as `load_classifier` does for a source that does not exist or has no such configuration.
    """
    place = find_place(source)
    with explained(place, KIND):
        return _configuration(place, class_names, tokenizer)


def trained_classes(configuration: Any) -> tuple[str, ...] | None:
    """Return the classes that a model was trained to tell apart, in the order of its logits; None without such a head.

    Example:
        >>> from transformers import BertConfig
        >>> trained_classes(BertConfig(architectures=["BertForSequenceClassification"], id2label={0: "no", 1: "yes"}))
        ('no', 'yes')
        >>> trained_classes(BertConfig(architectures=["BertModel"])) is None
        True
    """
    named = getattr(configuration, "architectures", None) or []
    if not any(name.endswith("ForSequenceClassification") for name in named):
        return None
    return tuple(str(configuration.id2label[number]) for number in range(configuration.num_labels))


def longest_text(configuration: Any) -> int | None:
    """Return how many tokens a text may have; None if the architecture knows no limit.

    Example:
        >>> from transformers import BertConfig, RobertaConfig
        >>> longest_text(BertConfig()), longest_text(RobertaConfig(max_position_embeddings=514, pad_token_id=1))
        (512, 512)
    """
    text = configuration.get_text_config()
    positions: int | None = getattr(text, "max_position_embeddings", None)
    if positions is None or positions < 1:  # DeBERTa: -1
        return None
    is_shifted = configuration.model_type in _POSITIONS_FROM_PADDING
    return positions - (text.pad_token_id or 0) - 1 if is_shifted else positions


def _configuration(place: Place, class_names: Sequence[str] | None, tokenizer: Tokenizer | None) -> Any:
    configuration = read_configuration(place, tokenizer)
    if class_names is None:
        if trained_classes(configuration) is None:
            raise ConfigError(
                f"load_classifier: source={place.name} has no classification head; expected a model that was trained "
                "to classify. Train one: fw train with task: {name: classification, ...}."
            )
        return configuration
    configuration.id2label = dict(enumerate(class_names))
    configuration.label2id = {name: number for number, name in enumerate(class_names)}
    configuration.problem_type = "single_label_classification"
    if tokenizer is not None:
        # Without it a decoder takes no micro-batch of several texts.
        configuration.get_text_config().pad_token_id = cast(Any, tokenizer).pad_token_id
        configuration.pad_token_id = cast(Any, tokenizer).pad_token_id
    return configuration


def _on_body(causal: Any, configuration: Any, dtype: torch.dtype) -> Any:
    """Return a classifier with a new head on the body of a language model."""
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_config(configuration, dtype=dtype)
    setattr(model, model.base_model_prefix, causal.base_model)
    return model


def _of_body(model: Any, names: Iterable[str]) -> set[str]:
    """Return which weights are none of the head; a pooler, which language models are saved without, belongs to it."""
    body = f"{model.base_model_prefix}."
    return {name for name in names if name.startswith(body) and not name.startswith(f"{body}pooler.")}
