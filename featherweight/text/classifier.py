"""Texts to class probabilities: encoding for a model with a classification head, and a trained one put to use.

Shapes: B texts of a micro-batch, L tokens of its longest one, C classes.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from featherweight.errors import ConfigError
from featherweight.models.classifier import (
    classifier_configuration,
    load_classifier,
    longest_text,
    new_classifier,
    trained_classes,
)
from featherweight.models.facts import ModelFacts
from featherweight.models.load import load_tokenizer
from featherweight.models.quiet import quiet_transformers
from featherweight.models.sources import ModelSource
from featherweight.text.labelled import LabelledText
from featherweight.training.task import Batch
from featherweight.unwrap import unwrap_model


@dataclass(frozen=True)
class EncodedText:
    """A text as token ids."""

    ids: tuple[int, ...]
    kinds: tuple[int, ...] | None
    """0 for tokens of the text, 1 for those of the second one; None where the model knows no kinds."""
    length: int
    """Tokens before any cut."""

    @property
    def is_cut(self) -> bool:
        """Whether its end was left out."""
        return self.length > len(self.ids)


class TextEncoder:
    """Encodes texts, or pairs of them, as the tokenizer does, and pads them behind their end.

    Args:
        tokenizer: of transformers.
        configuration: of the model.
        max_tokens: longer texts are cut at their end, the longer one of a pair first; None takes what the model can.
        where: opens messages.
    Raises:
        ConfigError: if the model cannot read so many tokens, or the tokenizer has no token to pad with.
    """

    def __init__(self, tokenizer: Any, configuration: Any, max_tokens: int | None, *, where: str) -> None:
        self.tokenizer = tokenizer
        longest = longest_text(configuration)
        if max_tokens is not None and longest is not None and max_tokens > longest:
            raise ConfigError(
                f"{where}: max_tokens={max_tokens} is longer than the {longest} tokens that the model reads; expected "
                f"1 <= max_tokens <= {longest}. Lower max_tokens or choose another model."
            )
        if tokenizer.pad_token_id is None:
            raise ConfigError(
                f"{where}: tokenizer={type(tokenizer).__name__} has neither a padding nor an end-of-text token; "
                "expected one. Set pad_token in its tokenizer_config.json."
            )
        self.max_tokens = min(max_tokens or 2**31, longest or 2**31, tokenizer.model_max_length)
        self.has_kinds = has_kinds(configuration)

    def encode(self, texts: Sequence[LabelledText]) -> list[EncodedText]:
        """Return token ids of texts.

        Raises:
            ConfigError: for a text of which the tokenizer leaves nothing.
        """
        with quiet_transformers():
            # Pairs and single texts may stand in one file; the tokenizer takes one of both at a time.
            return [self._encode(one) for one in texts]

    def batch(self, rows: Sequence[EncodedText]) -> dict[str, Tensor]:
        """Return input_ids and attention_mask, and token_type_ids where the model knows kinds; each (B, L) int64."""
        length = max(len(row.ids) for row in rows)
        batch = {
            "input_ids": torch.full((len(rows), length), self.tokenizer.pad_token_id),
            "attention_mask": torch.zeros((len(rows), length), dtype=torch.int64),
        }
        if self.has_kinds:
            batch["token_type_ids"] = torch.zeros((len(rows), length), dtype=torch.int64)
        for number, row in enumerate(rows):
            count = len(row.ids)
            batch["input_ids"][number, :count] = torch.tensor(row.ids)
            batch["attention_mask"][number, :count] = 1
            if self.has_kinds and row.kinds is not None:
                batch["token_type_ids"][number, :count] = torch.tensor(row.kinds)
        return batch

    def _encode(self, one: LabelledText) -> EncodedText:
        whole = self.tokenizer(one.text, one.pair)
        length = len(whole["input_ids"])
        if not length:
            raise ConfigError(
                f"{one.where}: text={one.text[:60]!r} has no token; expected a text that the tokenizer knows. Correct "
                "or remove the row."
            )
        if length > self.max_tokens:
            whole = self.tokenizer(one.text, one.pair, truncation=True, max_length=self.max_tokens)
        kinds = whole.get("token_type_ids")
        return EncodedText(
            tuple(whole["input_ids"]), tuple(kinds) if self.has_kinds and kinds is not None else None, length
        )


def classifier_facts(source: ModelSource, classes: Sequence[str], tokenizer: Any) -> ModelFacts:
    """Return what is known of a model with a head for these classes, without its weights.

    Raises:
        ConfigError: if the source does not exist, or has no architecture with such a head.
    """
    configuration = classifier_configuration(source, classes, tokenizer=tokenizer)
    with quiet_transformers(), torch.device("meta"):
        model = new_classifier(configuration)
    return ModelFacts(
        name=source if isinstance(source, str) else configuration.model_type,
        model_type=configuration.model_type,
        parameters=sum(one.numel() for one in model.parameters()),
        vocab_size=configuration.get_text_config().vocab_size,
        max_position_embeddings=longest_text(configuration),
    )


def has_kinds(configuration: Any) -> bool:
    """Tell whether a model has embeddings that tell a text from the second one."""
    return (getattr(configuration.get_text_config(), "type_vocab_size", 0) or 0) > 1


def class_logits(model: nn.Module, batch: Batch) -> Tensor:
    """Return the logits of classes, (B, C) float32, with their graph.

    Args:
        model: with a classification head, wrapped or not.
        batch: of `TextEncoder.batch`, on the model's device.
    """
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids") if name in batch}
    # Keys and values of a decoder are of no use here.
    takes_cache = "use_cache" in inspect.signature(unwrap_model(model, peft=True).forward).parameters
    logits: Tensor = model(**inputs, **({"use_cache": False} if takes_cache else {})).logits
    return logits.float()


@dataclass(frozen=True)
class Prediction:
    """The class of a text."""

    label: str
    probability: float
    probabilities: tuple[float, ...]
    """Of all classes, in the model's order."""
    is_cut: bool
    """Whether the text was longer than the model read."""


class TextClassifier:
    """A trained classifier: texts in, classes and probabilities out.

    Args:
        source: a model with a classification head; see `featherweight.models.sources`.
        max_tokens: longer texts are cut; None takes what the model was trained with.
        device: where to compute; None takes the GPU if there is one.
    Raises:
        ConfigError: if the model does not exist or has no trained head.
    """

    def __init__(self, source: str, *, max_tokens: int | None = None, device: str | None = None) -> None:
        tokenizer: Any = load_tokenizer(source)
        found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        self.device = device or (found.type if found is not None else "cpu")
        self.model = load_classifier(source).eval().to(self.device)
        configuration: Any = self.model.config
        self.classes = trained_classes(configuration) or ()
        if configuration.get_text_config().pad_token_id is None:
            configuration.get_text_config().pad_token_id = tokenizer.pad_token_id
        self._encoder = TextEncoder(tokenizer, configuration, max_tokens, where="fw classify")

    @property
    def max_tokens(self) -> int:
        """How many tokens of a text are read."""
        return self._encoder.max_tokens

    def __call__(self, texts: Sequence[LabelledText]) -> list[Prediction]:
        """Return the class of each text; they are computed as one micro-batch."""
        rows = self._encoder.encode(texts)
        batch = {name: tensor.to(self.device) for name, tensor in self._encoder.batch(rows).items()}
        with torch.inference_mode():
            shares_BC = class_logits(self.model, batch).softmax(dim=1).cpu()
        return [
            Prediction(self.classes[int(shares.argmax())], float(shares.max()), tuple(shares.tolist()), row.is_cut)
            for shares, row in zip(shares_BC, rows, strict=True)
        ]
