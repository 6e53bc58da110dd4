"""Instructions as a task: questions with wanted responses, of which the responses alone are learnt.

A `featherweight.training.task.Task`; recipes reach it by `task: {name: instructions, ...}`.
Shapes: B rows of a micro-batch, L tokens of its longest row, n rows of a split.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator
from torch import Tensor, nn

from featherweight.config import Config
from featherweight.errors import ConfigError
from featherweight.models.facts import model_facts
from featherweight.models.load import load_model, load_tokenizer
from featherweight.models.quiet import quiet_transformers
from featherweight.models.save import save_model_folder
from featherweight.models.tokenizer import end_of_text_id
from featherweight.models.weights import begins_pretrained, check_weights
from featherweight.text.causal_loss import held_out_metrics, summed_loss
from featherweight.text.corpus import split_documents
from featherweight.text.instructions import (
    Instruction,
    Template,
    as_cloze,
    encode_instruction,
    load_instructions,
    pad_batch,
)
from featherweight.text.multiple_choice import answer_prefix, evaluate_multiple_choice, is_multiple_choice
from featherweight.text.packing import IGNORED_LABEL, predicted_tokens
from featherweight.text.skeleton import TextSkeleton
from featherweight.training.order import micro_batch_numbers, shuffled_rows
from featherweight.training.task import Batch, Split, Task, Words


class InstructionConfig(Config):
    """Options of the task of instructions."""

    model: str | dict[str, Any] = "smollm2"
    """smollm2, tiny, a shape such as llama-60m, a model folder, a .gguf or .json file, a name of the Hugging Face hub,
    or the configuration of a new model."""
    weights: Literal["pretrained", "random"] | None = None
    """With which weights training begins. None: those of the model; a name of a shape, such as llama-3-8b, has none and
    is refused. random: new ones, also for a model that has some."""
    tokenizer: str | None = None
    """Whose tokenizer: any source of a model, or bytes. None: the model's own; a new model has bytes."""
    data: str
    """A file of JSON or JSON lines with an instruction and an output in each row."""
    held_out: float | str = 0.05
    """Share of the questions to hold out, 0 < share < 1; or a file of its own (questions that also stand there are not
    trained on)."""
    held_out_seed: int = 0
    """Seed of the held-out split; apart from the run's seed, so that runs with different seeds are compared on the same
    questions."""
    prompt: Literal["alpaca", "official", "cloze"] = "alpaca"
    """alpaca: one text around the question for training and evaluation. official: the two of LLM-Adapters. cloze: a
    question with options is answered by the text of the right one, which small models learn sooner."""
    max_tokens: int = Field(default=256, ge=2)
    """Longest row, prompt and response together; longer ones lose the end of their response."""
    leave_out_long: bool = False
    """True: leave out rows longer than max_tokens. False: cut them, and refuse a row whose prompt alone is longer."""
    max_train_rows: int | None = Field(default=None, ge=1)
    """Use only the first so many training rows; None uses all."""
    max_held_out_rows: int | None = Field(default=None, ge=1)
    """Use only the first so many held-out rows; None uses all."""
    max_questions: int = Field(default=100, ge=0)
    """Measure the accuracy on the first so many held-out questions that have options and are not cut; 0 does not
    measure it."""

    @field_validator("held_out")
    @classmethod
    def _is_a_share(cls, held_out: float | str) -> float | str:
        if isinstance(held_out, float | int) and not 0 < held_out < 1:
            raise ValueError(
                "is out of range; expected 0 < held_out < 1, or the path of a file. Set it to 0.05, for example."
            )
        return held_out


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


class InstructionTask(Task):
    """Answer instructions.

    The loss counts the tokens of the responses and the end-of-text token behind each. Rows of a micro-batch are padded
    behind their end to its longest one, where causal attention does not look, so no mask is needed.

    Args:
        config: options.
        seed: of the weights of a new model.
    Raises:
        ConfigError: if model, tokenizer and data do not exist or do not fit each other; the message names file and row.
    """

    Config = InstructionConfig
    length_key = "max_tokens"

    @classmethod
    def skeleton(cls, config: InstructionConfig, *, seed: int, layers: int | None = None) -> TextSkeleton:
        """Return a task whose rows all have `max_tokens`, without data and weights; see `Skeleton`."""
        return TextSkeleton(config.model, seq_len=config.max_tokens, layers=layers, length_key="max_tokens")

    @classmethod
    def is_pretrained(cls, config: InstructionConfig) -> bool:
        """Tell whether training begins with the weights of a trained model."""
        return begins_pretrained(config.model, config.weights)

    @classmethod
    def check_weights(cls, config: InstructionConfig, adapters: Sequence[str] = ()) -> None:
        """Refuse a shape without weights, and adapters on random ones; see `featherweight.models.weights`."""
        check_weights(config.model, config.weights, adapters=adapters, where="instructions task")

    def __init__(self, config: InstructionConfig, *, seed: int) -> None:
        self.config = config
        self.seed = seed
        self.template: Template = "official" if config.prompt == "official" else "alpaca"
        tokenizer_source = config.tokenizer or config.model
        self.tokenizer = load_tokenizer(tokenizer_source)
        self.facts = model_facts(config.model, tokenizer=self.tokenizer)
        longest = self.facts.max_position_embeddings
        if longest is not None and config.max_tokens > longest:
            raise ConfigError(
                f"instructions: max_tokens={config.max_tokens} is longer than max_position_embeddings={longest} of "
                f"model '{self.facts.name}'; expected 2 <= max_tokens <= {longest}. Lower max_tokens or choose another "
                "model."
            )
        self._end_of_text = end_of_text_id(self.tokenizer, name=str(tokenizer_source))
        training, held_out = self._split()
        self._train = [encoded for _, encoded in self._encode(training, config.max_train_rows)]
        asked = self._encode(held_out, config.max_held_out_rows)
        self._held_out = [encoded for _, encoded in asked]
        scored = [row.example for row, encoded in asked if is_multiple_choice(row.example) and not encoded.is_cut]
        self._questions = scored[: config.max_questions]
        self.words = Words(metrics=("perplexity", "accuracy") if self._questions else ("perplexity",))

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
        return len(self._train)

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
        numbers = micro_batch_numbers(
            micro_batch_size=micro_batch_size,
            process_rank=process_rank,
            world_size=world_size,
            start=start,
            where="instructions",
        )
        if split == "train":
            count = len(self._train)
            orders = shuffled_rows(numbers, micro_batch_size=micro_batch_size, row_count=count, seed=seed)
            return (self._padded([self._train[row] for row in chosen]) for chosen in orders)
        return self._held_out_batches(numbers, micro_batch_size)

    @property
    def guessing_loss(self) -> float:
        """Loss of a model that knows nothing: the logarithm of the size of its vocabulary, in nats."""
        return math.log(self.facts.vocab_size)

    def item_count(self, batch: Batch) -> int:
        """Return how many tokens the loss of `batch` sums over: those of the responses."""
        return predicted_tokens(batch["labels"])

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, int]:
        """Return the float32 sum of the losses of response tokens, with its graph, and their number."""
        return summed_loss(model, batch)

    def evaluate(self, model: nn.Module, *, micro_batch_size: int) -> dict[str, float]:
        """Return the metrics of the held-out split.

        Args:
            model: on any device; its training mode comes back afterwards.
            micro_batch_size: rows at once for the loss; the options of one question at once for the accuracy.
        Returns:
            held_out_loss (mean over response tokens, in nats), perplexity (its exponential) and tokens; with questions
            that have options also accuracy (share whose right option is the most probable one), questions and chance.
        """
        batches = self.batches("held_out", micro_batch_size=micro_batch_size, seed=0)
        metrics = held_out_metrics(model, batches, self.loss)
        if self._questions:
            prefix = answer_prefix(self._questions)
            metrics |= evaluate_multiple_choice(
                model, self.tokenizer, self._questions, template=self.template, prefix=prefix
            )
        return metrics

    def save_model(self, model: nn.Module, folder: Path) -> None:
        """Write model and tokenizer as a folder that `transformers` opens; it appears complete or not at all.

        Raises:
            ConfigError: if the folder holds something else, or cannot be written.
        """
        save_model_folder(model, self.tokenizer, Path(folder))

    def describe(self) -> dict[str, object]:
        """Return names and exact counts for the report.

        Tokens of a split are those of its responses, which the loss counts; cut rows lost the end of theirs.
        """
        facts: dict[str, object] = {
            "model": self.facts.name,
            "weights": "pretrained" if self.is_pretrained(self.config) else "random",
            "model_type": self.facts.model_type,
            "parameters": self.facts.parameters,
            "vocab_size": self.facts.vocab_size,
            "data": self.config.data,
            "prompt": self.config.prompt,
            "max_tokens": self.config.max_tokens,
            "questions": len(self._questions),
        }
        for name, rows in (("train", self._train), ("held_out", self._held_out)):
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

    def _padded(self, rows: Sequence[_Encoded]) -> dict[str, Tensor]:
        batch = pad_batch([row.to_example() for row in rows], self._end_of_text)
        del batch["attention_mask"]
        return batch

    def _held_out_batches(self, numbers: Iterator[int], micro_batch_size: int) -> Iterator[dict[str, Tensor]]:
        for number in numbers:
            chosen = self._held_out[number * micro_batch_size : (number + 1) * micro_batch_size]
            if not chosen:
                return
            yield self._padded(chosen)
