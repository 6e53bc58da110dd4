"""Instructions as a task: questions with wanted responses, of which the responses alone are learnt.

A `featherweight.training.task.Task`; recipes reach it by `task: {name: instructions, ...}`.
Shapes: B rows of a micro-batch, L tokens of its longest row, n rows of a split.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from featherweight.errors import ConfigError
from featherweight.models.facts import model_facts
from featherweight.models.load import load_tokenizer
from featherweight.models.quiet import quiet_transformers
from featherweight.models.tokenizer import end_of_text_id
from featherweight.text.causal_task import CausalTask
from featherweight.text.corpus import split_documents
from featherweight.text.instructions import (
    Instruction,
    Template,
    as_cloze,
    encode_instruction,
    load_instructions,
    pad_batch,
)
from featherweight.text.language_task import facts_of, require_length
from featherweight.text.multiple_choice import answer_prefix, evaluate_multiple_choice, is_multiple_choice
from featherweight.text.options import InstructionConfig
from featherweight.text.packing import IGNORED_LABEL
from featherweight.training.task import Split, Words


@dataclass(frozen=True)
class _Row:
    """One question of a file, as it is asked."""

    example: Instruction
    question: str
    """As it stands in the file; decides which split it goes to."""
    where: str
    """File and row, for messages."""


@dataclass(frozen=True)
class _Encoded:
    ids_L: NDArray[np.int32]
    prompt_tokens: int
    is_cut: bool

    def to_example(self) -> dict[str, list[int]]:
        """Return ids and labels; the prompt has none."""
        ids = self.ids_L.tolist()
        return {
            "input_ids": ids,
            "labels": [IGNORED_LABEL] * self.prompt_tokens + ids[self.prompt_tokens :],
        }


class InstructionTask(CausalTask):
    """Answer instructions.

    The loss counts the tokens of the responses and the end-of-text token behind each. Rows of a micro-batch are padded
    behind their end to its longest one, where causal attention does not look, so no mask is needed. They are
    {"input_ids": (B, L) int64, "labels": (B, L) int64}; ignored labels are -100.

    Args:
        config: options.
        seed: of the weights of a new model.
    Raises:
        ConfigError: if model, tokenizer and data do not exist or do not fit each other; the message names file and row.
    """

    Config = InstructionConfig
    where = InstructionConfig.where

    def __init__(self, config: InstructionConfig, *, seed: int) -> None:
        self.config = config
        self.seed = seed
        self.template: Template = "official" if config.prompt == "official" else "alpaca"
        tokenizer_source = config.tokenizer or config.model
        self.tokenizer = load_tokenizer(tokenizer_source)
        self.facts = model_facts(config.model, tokenizer=self.tokenizer)
        require_length(self, self.facts)
        self._end_of_text = end_of_text_id(self.tokenizer, name=str(tokenizer_source))
        training, held_out = self._split()
        trained = [encoded for _, encoded in self._encode(training, config.max_train_rows)]
        asked = self._encode(held_out, config.max_held_out_rows)
        self._rows: dict[Split, list[_Encoded]] = {"train": trained, "held_out": [encoded for _, encoded in asked]}
        scored = [row.example for row, encoded in asked if is_multiple_choice(row.example) and not encoded.is_cut]
        self._questions = scored[: config.max_questions]
        self.words = Words(metrics=("perplexity", "accuracy") if self._questions else ("perplexity",))

    def row_count(self, split: Split) -> int:
        """Return the rows of a split."""
        return len(self._rows[split])

    def collate(self, split: Split, rows: Sequence[int]) -> dict[str, Tensor]:
        """Return rows of a split as a micro-batch."""
        batch = pad_batch([self._rows[split][row].to_example() for row in rows], self._end_of_text)
        del batch["attention_mask"]
        return batch

    def evaluate(self, model: nn.Module, *, micro_batch_size: int) -> dict[str, float]:
        """Return the metrics of the held-out split.

        Args:
            model: on any device; its training mode comes back afterwards.
            micro_batch_size: rows at once for the loss; the options of one question at once for the accuracy.
        Returns:
            held_out_loss (mean over response tokens, in nats), perplexity (its exponential) and tokens; with questions
            that have options also accuracy (share whose right option is the most probable one), questions and chance.
        """
        metrics = super().evaluate(model, micro_batch_size=micro_batch_size)
        if self._questions:
            prefix = answer_prefix(self._questions)
            metrics |= evaluate_multiple_choice(
                model, self.tokenizer, self._questions, template=self.template, prefix=prefix, share=self.share
            )
        return metrics

    def describe(self) -> dict[str, object]:
        """Return names and exact counts for the report.

        Tokens of a split are those of its responses, which the loss counts; cut rows lost the end of theirs.
        """
        facts = facts_of(self, self.facts) | {
            "data": self.config.data,
            "prompt": self.config.prompt,
            "max_tokens": self.config.max_tokens,
            "questions": len(self._questions),
        }
        for name, rows in self._rows.items():
            facts[f"{name}_rows"] = len(rows)
            facts[f"{name}_tokens"] = sum(len(row.ids_L) - row.prompt_tokens for row in rows)
            facts[f"{name}_cut_rows"] = sum(row.is_cut for row in rows)
        return facts

    # ---- data --------------------------------------------------------------------------------------------------------

    def _split(self) -> tuple[list[_Row], list[_Row]]:
        config = self.config
        rows = self._load(config.data)
        if isinstance(config.held_out, str):
            held_out = self._load(config.held_out)
            known = {row.question for row in held_out}
            training = [row for row in rows if row.question not in known]
            if not training:
                raise ConfigError(
                    f"instructions: data={config.data} holds no question that is not in held_out={config.held_out}; "
                    "expected some to train on. Hold out another file, or a share such as 0.05."
                )
            return training, held_out
        if len({row.question for row in rows}) < 2:
            raise ConfigError(
                f"instructions: data={config.data} holds one question alone; expected 2 or more, one of them to hold "
                "out. Add rows, or name a second file in held_out."
            )
        chosen = set(split_documents([row.question for row in rows], config.held_out, config.held_out_seed)[0])
        return [row for row in rows if row.question in chosen], [row for row in rows if row.question not in chosen]

    def _load(self, path: str) -> list[_Row]:
        rows = []
        for number, example in enumerate(load_instructions(path), 1):
            asked = as_cloze(example) if self.config.prompt == "cloze" else example
            if asked is None:
                raise ConfigError(
                    f"instructions: prompt=cloze does not go with row {number} of {path}, which lacks texts of options "
                    "or whose answer is none of them; expected 'Answer1: .. Answer2: .. Answer format: "
                    "answer1/answer2'. Correct or remove the row, or set prompt: alpaca."
                )
            rows.append(_Row(asked, example.instruction, f"row {number} of {path}"))
        return rows

    def _encode(self, rows: Sequence[_Row], limit: int | None) -> list[tuple[_Row, _Encoded]]:
        with quiet_transformers():
            encoded = [(row, self._encode_row(row)) for row in rows[:limit]]
        kept = [(row, one) for row, one in encoded if one is not None]
        if not kept:
            raise ConfigError(
                f"instructions: max_tokens={self.config.max_tokens} leaves out all {len(encoded)} rows of one split, "
                f"from {rows[0].where} on; expected a length that some rows have. Raise max_tokens."
            )
        return kept

    def _encode_row(self, row: _Row) -> _Encoded | None:
        """Return the ids of a row; None for a long one that is to be left out."""
        config = self.config
        whole = encode_instruction(row.example, self.tokenizer, max_tokens=2**31, template=self.template)
        ids_L = np.array(whole["input_ids"], dtype=np.int32)
        prompt = sum(label == IGNORED_LABEL for label in whole["labels"])
        is_cut = len(ids_L) > config.max_tokens
        if is_cut and config.leave_out_long:
            return None
        if prompt >= config.max_tokens:
            raise ConfigError(
                f"instructions: max_tokens={config.max_tokens} is filled by the {prompt} tokens of the prompt of "
                f"{row.where}; expected space for its response. Raise max_tokens, or set leave_out_long: true."
            )
        if ids_L.max() >= self.facts.vocab_size:
            raise ConfigError(
                f"instructions: token id={ids_L.max()} in {row.where} is outside the model's "
                f"vocab_size={self.facts.vocab_size}; expected the tokenizer that belongs to the model. Leave "
                "tokenizer unset, or raise the model's vocab_size."
            )
        return _Encoded(ids_L[: config.max_tokens], prompt, is_cut)
