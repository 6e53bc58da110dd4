"""Classification as a task: texts, or pairs of them, into classes that the data name.

Implements `featherweight.training.task.Task`; recipes reach it by `task: {name: classification, ...}`. Any encoder or
decoder of transformers gets a new head; LoRA and S2FT train that head whole, beside their own parameters.
Shapes: B texts of a micro-batch, L tokens of its longest one, C classes.
"""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from featherweight.errors import ConfigError, did_you_mean
from featherweight.models.classifier import (
    classifier_configuration,
    load_classifier,
    longest_text,
    new_classifier,
    trained_classes,
)
from featherweight.models.facts import model_configuration
from featherweight.models.load import load_tokenizer
from featherweight.models.quiet import quiet_transformers
from featherweight.text.classification_metrics import classification_metrics, confusions
from featherweight.text.classifier import EncodedText, TextEncoder, class_logits, has_kinds
from featherweight.text.conversation_data import Part, order_of, split_records
from featherweight.text.corpus import HUB_PREFIX
from featherweight.text.labelled import LabelledText, class_names, labelled_texts
from featherweight.text.language_task import LanguageTask
from featherweight.text.options import ClassificationConfig, RowsConfig
from featherweight.text.row_order import RowOrder
from featherweight.text.rows import read_rows
from featherweight.text.skeleton import TextSkeleton
from featherweight.text.sources import Data, data_name, sources_of
from featherweight.training.task import Batch, Split, Words

WHERE = ClassificationConfig.where
WORDS = Words("texts", "nats/text", ("accuracy", "macro_f1", "matthews"))


class ClassificationTask(LanguageTask):
    """Tell classes of texts apart.

    Micro-batches hold "input_ids" and "attention_mask" (B, L) int64, padded behind the end to the longest text,
    "token_type_ids" (B, L) where the model knows kinds of tokens, and "labels" (B,) int64.

    Args:
        config: options.
        seed: of the new head, and of the weights of a new model.
    Raises:
        ConfigError: if model, tokenizer and data do not exist or do not fit each other; the message names file and
        line.
    """

    Config = ClassificationConfig
    where = WHERE
    words = WORDS

    @classmethod
    def skeleton(
        cls, config: ClassificationConfig, *, seed: int, layers: int | None = None
    ) -> "ClassificationSkeleton":
        """Return a task whose texts all have `max_tokens`, without weights; of the data only classes are counted."""
        return ClassificationSkeleton(config, layers=layers)

    def __init__(self, config: ClassificationConfig, *, seed: int) -> None:
        self.config = config
        self.seed = seed
        training, held_out = self._split()
        tokenizer: Any = load_tokenizer(config.tokenizer or config.model)
        known = trained_classes(model_configuration(config.model))
        self.classes = class_names((row.label for row in self._all), known)
        self._check_classes(training.rows, held_out.rows)
        self.tokenizer = tokenizer
        configuration = classifier_configuration(config.model, self.classes, tokenizer=tokenizer)
        self.model_type: str = configuration.model_type
        self._encoder = TextEncoder(tokenizer, configuration, config.max_tokens, where=WHERE)
        with quiet_transformers(), torch.device("meta"):
            self.parameters = sum(one.numel() for one in new_classifier(configuration).parameters())
        # The same cut at use as in training.
        tokenizer.model_max_length = self._encoder.max_tokens
        self.cut: dict[Split, int] = {"train": 0, "held_out": 0}
        self.left_out: dict[Split, int] = {"train": 0, "held_out": 0}
        self._rows: dict[Split, list[EncodedText]] = {}
        self._labels: dict[Split, Tensor] = {}
        self._sources = self._encode("train", training)
        self._encode("held_out", held_out)
        self._weights = self._class_weights()

    def build_model(self) -> nn.Module:
        """Return the model with float32 weights on the CPU; a new head follows from the task's seed."""
        return load_classifier(
            self.config.model,
            self.classes,
            tokenizer=self.tokenizer,
            seed=self.seed,
            random_weights=self.config.weights == "random",
        )

    def row_count(self, split: Split) -> int:
        """Return the texts of a split."""
        return len(self._rows[split])

    def row_order(self) -> RowOrder:
        """Mix sources by their weights, and group by length, where asked for."""
        return order_of(self.config, self._sources, [len(row.ids) for row in self._rows["train"]])

    def collate(self, split: Split, rows: Sequence[int]) -> dict[str, Tensor]:
        """Return texts of a split as a micro-batch."""
        chosen = list(rows)
        batch = self._encoder.batch([self._rows[split][number] for number in chosen])
        return batch | {"labels": self._labels[split][chosen]}

    def item_count(self, batch: Batch) -> int:
        """Return the number of texts."""
        return len(batch["labels"])

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, int]:
        """Return the float32 sum of the losses of the texts, each times the weight of its class, and their number."""
        weights_C = None if self._weights is None else self._weights.to(batch["labels"].device)
        loss = F.cross_entropy(class_logits(model, batch), batch["labels"], weight=weights_C, reduction="sum")
        return loss, self.item_count(batch)

    def evaluate(self, model: nn.Module, *, micro_batch_size: int) -> dict[str, float]:
        """Return held_out_loss (mean over texts, in nats), accuracy, macro_f1, matthews and texts of the split."""
        device = next(model.parameters()).device
        was_training = model.training
        table_CC = torch.zeros((len(self.classes), len(self.classes)), dtype=torch.int64)
        total = 0.0
        model.eval()
        try:
            with torch.inference_mode():
                for batch, counts in self.held_out_share(micro_batch_size):
                    on_device = {name: tensor.to(device) for name, tensor in batch.items()}
                    logits_BC = class_logits(model, on_device).cpu()
                    total += F.cross_entropy(logits_BC, batch["labels"], reduction="sum").item() * counts
                    table_CC += counts * confusions(batch["labels"], logits_BC.argmax(dim=1), len(self.classes))
        finally:
            model.train(was_training)
        table_CC, (total,) = self.share.sum(table_CC), self.share.sums(total)
        count = int(table_CC.sum())
        return {"held_out_loss": total / count, **classification_metrics(table_CC), "texts": count}

    def describe(self) -> dict[str, object]:
        """Return names and exact counts for the report."""
        config = self.config
        facts: dict[str, object] = {
            "model": config.model if isinstance(config.model, str) else self.model_type,
            "weights": "pretrained" if self.is_pretrained(config) else "random",
            "model_type": self.model_type,
            "parameters": self.parameters,
            "data": data_name(config.data),
            "classes": len(self.classes),
            "class_names": list(self.classes),
            "classes_without_training_texts": len(self.classes) - len(self._labels["train"].unique()),
            "max_tokens": self._encoder.max_tokens,
            "train_texts_that_are_held_out": self._known_from_held_out,
        }
        for name, rows in self._rows.items():
            facts[f"{name}_texts"] = len(rows)
            facts[f"{name}_tokens_seen"] = sum(len(row.ids) for row in rows)
            facts[f"{name}_cut_texts"] = self.cut[name]
            facts[f"{name}_left_out_texts"] = self.left_out[name]
        return facts

    # ---- data --------------------------------------------------------------------------------------------------------

    def _split(self) -> tuple[Part[LabelledText], Part[LabelledText]]:
        config = self.config
        found = load_texts(config.data, config)
        self._all = found.rows
        named = config.held_out if isinstance(config.held_out, str) else None
        held_out = None if named is None else load_texts(named, config)
        training, held_out = split_records(found, held_out, config, lambda row: row.content, WHERE)
        self._known_from_held_out = len(found.rows) - len(training.rows) if named is not None else 0
        return training.limited(config.max_train_rows), held_out.limited(config.max_held_out_rows)

    def _check_classes(self, training: Sequence[LabelledText], held_out: Sequence[LabelledText]) -> None:
        config, name = self.config, data_name(self.config.data)
        if len(self.classes) < 2 or len({row.label for row in training}) < 2:
            first = training[0]
            limit = "" if len(self.classes) < 2 else f" that are trained on (max_train_rows={config.max_train_rows})"
            raise ConfigError(
                f"{WHERE}: data={name} has the one class '{first.label}' in all rows{limit}, the first at "
                f"{first.where}; expected 2 or more. Add rows of another class, or shuffle the rows."
            )
        if len(self.classes) > len(training):
            counts = Counter(row.label for row in self._all)
            alone = next((row for row in self._all if counts[row.label] == 1), self._all[0])
            raise ConfigError(
                f"{WHERE}: data={name} has {len(self.classes)} classes and only {len(training)} rows to train "
                f"on, '{alone.label}' at {alone.where} among them; expected several rows of each class. Is the column "
                "of labels the right one? Name it: columns: {label: ...}; or add rows."
            )
        known = set(self.classes)
        for row in held_out:
            if row.label not in known:
                raise ConfigError(
                    f"{row.where}: label='{row.label}' is no class of data={name}; expected one of its "
                    f"{len(known)}, such as {', '.join(self.classes[:3])}. "
                    f"{did_you_mean(row.label, list(self.classes), otherwise='Correct or remove the row.')}"
                )

    def _encode(self, split: Split, part: Part[LabelledText]) -> list[int]:
        """Take in the texts of a split, and return the number of the source of each that stays."""
        numbers = {name: number for number, name in enumerate(self.classes)}
        rows, labels, sources = [], [], []
        for one, row, source in zip(part.rows, self._encoder.encode(part.rows), part.sources, strict=True):
            if row.is_cut and self.config.long_rows == "refuse":
                raise ConfigError(
                    f"{one.where}: {row.length} tokens are more than max_tokens={self._encoder.max_tokens}; expected "
                    "texts that fit. Raise max_tokens, or set long_rows: cut or leave_out."
                )
            if row.is_cut and self.config.long_rows == "leave_out":
                self.left_out[split] += 1
                continue
            self.cut[split] += row.is_cut
            rows.append(row)
            labels.append(numbers[one.label])
            sources.append(source)
        if set(sources) != set(part.sources):
            raise ConfigError(
                f"{WHERE}: max_tokens={self._encoder.max_tokens} leaves out all {len(part.rows)} texts of one split or "
                "source; expected a length that some have. Raise max_tokens, or set long_rows: cut."
            )
        self._rows[split], self._labels[split] = rows, torch.tensor(labels)
        return sources

    def _class_weights(self) -> Tensor | None:
        """Return the weight of each class, (C,) float32; None if all are 1."""
        chosen = self.config.class_weights
        if chosen is None:
            return None
        if chosen == "balanced":
            counts_C = torch.bincount(self._labels["train"], minlength=len(self.classes))
            # A class without rows has no loss; any weight will do.
            return counts_C.sum() / (counts_C.clamp(min=1) * (counts_C > 0).sum())
        unknown = next((name for name in chosen if name not in self.classes), None)
        if unknown is not None:
            raise ConfigError(
                f"{WHERE}: class_weights={unknown!r} is no class of data={data_name(self.config.data)}; expected some "
                f"of {', '.join(self.classes[:5])}. {did_you_mean(unknown, list(self.classes))}"
            )
        return torch.tensor([float(chosen.get(name, 1.0)) for name in self.classes])


class ClassificationSkeleton(TextSkeleton):
    """Stands for the task in a simulation; data that are there are read for the number of classes, else it takes 2."""

    words = WORDS

    def __init__(self, config: ClassificationConfig, *, layers: int | None = None) -> None:
        super().__init__(config.model, seq_len=config.max_tokens, layers=layers, length_key="max_tokens")
        self.longest = longest_text(self._configuration)
        self.classes = class_count(config)
        self._is_weighted = config.class_weights is not None
        self._configuration.num_labels = self.classes
        text = self._configuration.get_text_config()
        if text.pad_token_id is None:
            text.pad_token_id = 0  # a decoder takes no two texts without one; which one does not matter here

    def build_model(self) -> nn.Module:
        """Return the model, with the weights of whatever device or mode is on."""
        with quiet_transformers():
            return new_classifier(self._configuration).train()

    def batches(self, split: Any, *, micro_batch_size: int, **others: Any) -> Iterator[dict[str, Tensor]]:
        """Yield micro-batches of the right shapes for ever; their content means nothing."""
        names = ["input_ids", "attention_mask", *(["token_type_ids"] if has_kinds(self._configuration) else [])]
        while True:
            batch = {name: torch.ones((micro_batch_size, self.seq_len), dtype=torch.int64) for name in names}
            yield batch | {"labels": torch.zeros(micro_batch_size, dtype=torch.int64)}

    def item_count(self, batch: Batch) -> int:
        """Return the number of texts, as the task does."""
        return len(batch["labels"])

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, int]:
        """Return the sum of the losses and their number, as the task does."""
        logits_BC = class_logits(model, batch)
        weights_C = torch.ones(self.classes, device=logits_BC.device) if self._is_weighted else None
        return F.cross_entropy(logits_BC, batch["labels"], weight=weights_C, reduction="sum"), self.item_count(batch)


def load_texts(data: Data, config: RowsConfig) -> Part[LabelledText]:
    """Return the rows of the data; see `labelled_texts`."""
    found: Part[LabelledText] = Part([], [])
    for number, (source, reading) in enumerate(sources_of(data, config.columns, config.ignore_columns, where=WHERE)):
        rows = list(labelled_texts(read_rows(source.path), **reading))
        found.rows.extend(rows)
        found.sources.extend([number] * len(rows))
    return found


def class_count(config: ClassificationConfig) -> int:
    """Return how many classes the data have, 2 where there are no data yet.

    Raises:
        ConfigError: if the data are there and cannot be read.
    """
    sources = sources_of(config.data, config.columns, config.ignore_columns, where=WHERE)
    paths = [Path(source.path).expanduser() for source, _ in sources]
    if any(source.path.startswith(HUB_PREFIX) for source, _ in sources) or not all(path.exists() for path in paths):
        return 2
    return _count_classes(json.dumps(config.to_dict()), tuple(path.stat().st_mtime_ns for path in paths))


@lru_cache(maxsize=8)
def _count_classes(settings: str, modified: tuple[int, ...]) -> int:
    """Count once: a plan builds many skeletons of one recipe."""
    config = ClassificationConfig.parse(json.loads(settings))
    return max(2, len({row.label for row in load_texts(config.data, config).rows}))
