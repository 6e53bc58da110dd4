"""Causal language modelling as a task: any Hugging Face model, any text, held out by document.

A `featherweight.training.task.Task`; recipes reach it by `task: {name: text, ...}`.
Shapes: B rows of a micro-batch, L = seq_len, V vocabulary.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from featherweight.errors import ConfigError
from featherweight.models.facts import model_facts
from featherweight.models.load import load_tokenizer
from featherweight.models.tokenizer import encode_documents, end_of_text_id
from featherweight.text.causal_task import CausalTask
from featherweight.text.corpus import cut_document, load_documents, split_documents
from featherweight.text.language_task import facts_of, require_length
from featherweight.text.options import TextConfig
from featherweight.text.packing import IGNORED_LABEL, held_out_rows, join_documents, training_rows
from featherweight.training.task import Split, Words


class TextTask(CausalTask):
    """Predict the next token of text.

    Documents are split by a hash of their text, encoded once, joined by the end-of-text token and packed into rows of
    `seq_len` tokens. Training rows do not overlap, and a tail shorter than a row is left out. Held-out rows share one
    token, so that every held-out token but the first is predicted exactly once, whatever `seq_len` is. Micro-batches
    are {"input_ids": (B, L) int64, "labels": (B, L) int64}; ignored labels are -100.

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
    where = TextConfig.where
    words = Words()
    length_key = "seq_len"

    def __init__(self, config: TextConfig, *, seed: int) -> None:
        self.config = config
        self.seed = seed
        tokenizer_source = config.tokenizer or config.model
        self.tokenizer = load_tokenizer(tokenizer_source)
        self.facts = model_facts(config.model, tokenizer=self.tokenizer)
        require_length(self, self.facts)
        self._end_of_text = end_of_text_id(self.tokenizer, name=str(tokenizer_source))
        train_documents, held_out_documents = self._split_corpus()
        self._document_counts = {"train": len(train_documents), "held_out": len(held_out_documents)}
        train_stream = self._encode(train_documents, config.max_train_tokens)
        held_out_stream = self._encode(held_out_documents, config.max_held_out_tokens)
        self._train_rows = training_rows(train_stream, config.seq_len)
        self._held_out_rows, self._held_out_lengths = held_out_rows(
            held_out_stream, config.seq_len, pad=self._end_of_text
        )

    def row_count(self, split: Split) -> int:
        """Return the rows of a split."""
        return len(self._train_rows if split == "train" else self._held_out_rows)

    def collate(self, split: Split, rows: Sequence[int]) -> dict[str, Tensor]:
        """Return rows of a split as a micro-batch."""
        chosen = list(rows)
        if split == "train":
            input_ids_BL = torch.from_numpy(self._train_rows[chosen].astype(np.int64))
            return {"input_ids": input_ids_BL, "labels": input_ids_BL.clone()}
        input_ids_BL = torch.from_numpy(self._held_out_rows[chosen].astype(np.int64))
        length_B1 = torch.from_numpy(self._held_out_lengths[chosen, None])
        is_padding_BL = torch.arange(self.config.seq_len) >= length_B1
        return {"input_ids": input_ids_BL, "labels": input_ids_BL.masked_fill(is_padding_BL, IGNORED_LABEL)}

    def describe(self) -> dict[str, object]:
        """Return names and exact counts for the report.

        train_tokens are the tokens of the training rows; held_out_tokens are the predicted ones.
        """
        return facts_of(self, self.facts) | {
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
