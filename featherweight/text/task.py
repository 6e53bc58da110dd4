"""Causal language modelling as a task: any Hugging Face model, any text, held out by document.

A `featherweight.training.task.Task`; recipes reach it by `task: {name: text, ...}`.
Shapes: B rows of a micro-batch, L = seq_len, V vocabulary.
"""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from featherweight.config import Config
from featherweight.errors import ConfigError
from featherweight.models.facts import model_facts
from featherweight.models.load import load_model, load_tokenizer
from featherweight.models.save import save_model_folder
from featherweight.models.tokenizer import encode_documents, end_of_text_id
from featherweight.models.weights import begins_pretrained, check_weights
from featherweight.text.causal_loss import held_out_metrics, summed_loss
from featherweight.text.corpus import cut_document, load_documents, split_documents
from featherweight.text.packing import IGNORED_LABEL, held_out_rows, join_documents, predicted_tokens, training_rows
from featherweight.text.skeleton import TextSkeleton
from featherweight.training.order import micro_batch_numbers, shuffled_rows
from featherweight.training.task import Batch, Split, Task, Words


class TextConfig(Config):
    """Options of the text task."""

    model: str | dict[str, Any] = "smollm2"
    """smollm2, tiny, a shape such as llama-60m, a model folder, a .gguf or .json file, a name of the Hugging Face hub,
    or the configuration of a new model."""
    weights: Literal["pretrained", "random"] | None = None
    """With which weights training begins. None: those of the model; a name of a shape, such as llama-3-8b, has none and
    is refused. random: new ones, also for a model that has some."""
    tokenizer: str | None = None
    """Whose tokenizer: any source of a model, or bytes. None: the model's own; a new model has bytes."""
    corpus: str = "english"
    """english, python, a .txt, .md, .jsonl, .json, .csv, .tsv or .parquet file, a folder of them, or
    hf:name[:config][:split]."""
    text_key: str = "text"
    """Column of the text in files with columns."""
    split_text_files: bool = True
    """True: blank lines in a .txt file separate documents. False: such a file is one document."""
    held_out: float | str = 0.05
    """Share of the documents to hold out, 0 < share < 1 (a single document is cut into 20 pieces first); or a corpus of
    its own (documents that also stand there are not trained on)."""
    held_out_seed: int = 0
    """Seed of the held-out split; apart from the run's seed, so that runs with different seeds are compared on the same
    text."""
    seq_len: int = Field(default=256, ge=2)
    """Tokens of one row."""
    max_train_tokens: int | None = Field(default=None, ge=2)
    """Use only the first so many training tokens; None uses all."""
    max_held_out_tokens: int | None = Field(default=None, ge=2)
    """Use only the first so many held-out tokens; None uses all."""

    @field_validator("held_out")
    @classmethod
    def _is_a_share(cls, held_out: float | str) -> float | str:
        if isinstance(held_out, float | int) and not 0 < held_out < 1:
            raise ValueError(
                "is out of range; expected 0 < held_out < 1, or the path of a corpus. Set it to 0.05, for example."
            )
        return held_out


class TextTask(Task):
    """Predict the next token of text.

    Documents are split by a hash of their text, encoded once, joined by the end-of-text token and packed into rows of
    `seq_len` tokens. Training rows do not overlap, and a tail shorter than a row is left out. Held-out rows share one
    token, so that every held-out token but the first is predicted exactly once, whatever `seq_len` is.

    Args:
        config: options.
        seed: of the weights of a new model.
    Raises:
        ConfigError: if model, tokenizer and corpus do not exist or do not fit each other (see `load_model`,
            `load_documents`).
    Example:
        >>> config = TextConfig(model="tiny", seq_len=100, max_train_tokens=1000, max_held_out_tokens=1000)
        >>> task = TextTask(config, seed=0)
        >>> task.describe()["train_tokens"], task.describe()["held_out_tokens"]
        (1000, 999)
    """

    Config = TextConfig
    words = Words()
    length_key = "seq_len"

    @classmethod
    def skeleton(cls, config: TextConfig, *, seed: int, layers: int | None = None) -> TextSkeleton:
        """Return a task with the shapes of this one, without data and weights; see `Skeleton`."""
        return TextSkeleton(config.model, seq_len=config.seq_len, layers=layers)

    @classmethod
    def is_pretrained(cls, config: TextConfig) -> bool:
        """Tell whether training begins with the weights of a trained model."""
        return begins_pretrained(config.model, config.weights)

    @classmethod
    def check_weights(cls, config: TextConfig, adapters: Sequence[str] = ()) -> None:
        """Refuse a shape without weights, and adapters on random ones; see `featherweight.models.weights`."""
        check_weights(config.model, config.weights, adapters=adapters, where="text task")

    def __init__(self, config: TextConfig, *, seed: int) -> None:
        self.config = config
        self.seed = seed
        tokenizer_source = config.tokenizer or config.model
        self.tokenizer = load_tokenizer(tokenizer_source)
        self.facts = model_facts(config.model, tokenizer=self.tokenizer)
        longest = self.facts.max_position_embeddings
        if longest is not None and config.seq_len > longest:
            raise ConfigError(
                f"text task: seq_len={config.seq_len} is longer than max_position_embeddings={longest} of model "
                f"'{self.facts.name}'; expected 2 <= seq_len <= {longest}. Lower seq_len or choose another model."
            )
        self._end_of_text = end_of_text_id(self.tokenizer, name=str(tokenizer_source))
        train_documents, held_out_documents = self._split_corpus()
        self._document_counts = {"train": len(train_documents), "held_out": len(held_out_documents)}
        train_stream = self._encode(train_documents, config.max_train_tokens)
        held_out_stream = self._encode(held_out_documents, config.max_held_out_tokens)
        self._train_rows = training_rows(train_stream, config.seq_len)
        self._held_out_rows, self._held_out_lengths = held_out_rows(
            held_out_stream, config.seq_len, pad=self._end_of_text
        )

    def build_model(self) -> nn.Module:
        """Return the model with float32 weights on the CPU; random weights follow from the task's seed."""
        return load_model(
            self.config.model,
            tokenizer=self.tokenizer,
            seed=self.seed,
            random_weights=self.config.weights == "random",
        )

    def train_rows(self) -> int:
        """Return the rows of one epoch."""
        return len(self._train_rows)

    def batches(
        self,
        split: Split,
        *,
        micro_batch_size: int,
        seed: int,
        process_rank: int = 0,
        world_size: int = 1,
        start: int = 0,
    ) -> Iterator[dict[str, Tensor]]:
        """Yield micro-batches {"input_ids": (B, L) int64, "labels": (B, L) int64}; ignored labels are -100.

        Args:
            split: "train" never ends; every epoch visits each row once, in an order given by (seed, epoch), and a
                micro-batch may span two epochs. "held_out" is one pass in fixed order; its last micro-batch may be
                smaller.
            micro_batch_size: rows per micro-batch, B.
            seed: of the order.
            process_rank: which share; micro-batches are dealt out in turn.
            world_size: number of shares.
            start: micro-batches of this share to skip; nothing is computed for them.
        Raises:
            ConfigError: if a number is out of range.
        """
        turns = micro_batch_numbers(
            micro_batch_size=micro_batch_size,
            process_rank=process_rank,
            world_size=world_size,
            start=start,
            where="text task",
        )
        if split == "train":
            return self._train_batches(turns, micro_batch_size, seed)
        return self._held_out_batches(turns, micro_batch_size)

    @property
    def guessing_loss(self) -> float:
        """Loss of a model that knows nothing: the logarithm of the size of its vocabulary, in nats."""
        return math.log(self.facts.vocab_size)

    def item_count(self, batch: Batch) -> int:
        """Return how many tokens the loss of `batch` sums over: labels at positions 1..L-1 that are not ignored."""
        return predicted_tokens(batch["labels"])

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, int]:
        """Return the float32 sum of the token losses, with its graph, and the number of tokens; see `summed_loss`."""
        return summed_loss(model, batch)

    def evaluate(self, model: nn.Module, *, micro_batch_size: int) -> dict[str, float]:
        """Return the metrics of the held-out split; every process computes the whole split.

        Args:
            model: on any device; its training mode comes back afterwards.
            micro_batch_size: rows at once.
        Returns:
            held_out_loss (mean over tokens, in nats), perplexity (its exponential), and tokens.
        """
        batches = self.batches("held_out", micro_batch_size=micro_batch_size, seed=0)
        return held_out_metrics(model, batches, self.loss)

    def save_model(self, model: nn.Module, folder: Path) -> None:
        """Write model and tokenizer as a folder that `transformers` opens; it appears complete or not at all.

        Raises:
            ConfigError: if the folder holds something else, or cannot be written.
        """
        save_model_folder(model, self.tokenizer, Path(folder))

    def describe(self) -> dict[str, object]:
        """Return names and exact counts for the report.

        train_tokens are the tokens of the training rows; held_out_tokens are the predicted ones.
        """
        return {
            "model": self.facts.name,
            "weights": "pretrained" if self.is_pretrained(self.config) else "random",
            "model_type": self.facts.model_type,
            "parameters": self.facts.parameters,
            "vocab_size": self.facts.vocab_size,
            "corpus": self.config.corpus,
            "seq_len": self.config.seq_len,
            "train_documents": self._document_counts["train"],
            "held_out_documents": self._document_counts["held_out"],
            "train_rows": len(self._train_rows),
            "train_tokens": self._train_rows.size,
            "held_out_tokens": int((self._held_out_lengths - 1).sum()),
        }

    def _split_corpus(self) -> tuple[list[str], list[str]]:
        config = self.config
        documents = self._documents(config.corpus)
        if not isinstance(config.held_out, str):
            if len(set(documents)) == 1:
                documents = cut_document(documents[0])
            return split_documents(documents, config.held_out, config.held_out_seed)
        held_out = self._documents(config.held_out)
        known = set(held_out)
        training = [document for document in documents if document not in known]
        if not training:
            raise ConfigError(
                f"text task: corpus={config.corpus} holds no document that is not in held_out={config.held_out}; "
                "expected some to train on. Choose another corpus to hold out, or a share such as 0.05."
            )
        return training, held_out

    def _documents(self, source: str) -> list[str]:
        return load_documents(source, text_key=self.config.text_key, split_text_files=self.config.split_text_files)

    def _encode(self, documents: list[str], max_tokens: int | None) -> Any:
        stream = join_documents(encode_documents(self.tokenizer, documents), self._end_of_text, max_tokens=max_tokens)
        if stream.size and stream.max() >= self.facts.vocab_size:
            raise ConfigError(
                f"text task: token id={stream.max()} of the tokenizer is outside the model's "
                f"vocab_size={self.facts.vocab_size}; expected the tokenizer that belongs to the model. Leave "
                "tokenizer unset, or raise the model's vocab_size."
            )
        return stream

    def _train_batches(self, turns: Iterator[int], micro_batch_size: int, seed: int) -> Iterator[dict[str, Tensor]]:
        row_count = len(self._train_rows)
        for chosen in shuffled_rows(turns, micro_batch_size=micro_batch_size, row_count=row_count, seed=seed):
            input_ids_BL = torch.from_numpy(self._train_rows[chosen].astype(np.int64))
            yield {"input_ids": input_ids_BL, "labels": input_ids_BL.clone()}

    def _held_out_batches(self, turns: Iterator[int], micro_batch_size: int) -> Iterator[dict[str, Tensor]]:
        for turn in turns:
            chosen = slice(turn * micro_batch_size, (turn + 1) * micro_batch_size)
            if chosen.start >= len(self._held_out_rows):
                return
            input_ids_BL = torch.from_numpy(self._held_out_rows[chosen].astype(np.int64))
            length_B1 = torch.from_numpy(self._held_out_lengths[chosen, None])
            is_padding_BL = torch.arange(self.config.seq_len) >= length_B1
            yield {"input_ids": input_ids_BL, "labels": input_ids_BL.masked_fill(is_padding_BL, IGNORED_LABEL)}
