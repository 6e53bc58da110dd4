"""Conversations as a task: in the model's own chat template, of which the assistant's words alone are learnt.

Implements `featherweight.training.task.Task`; recipes reach it by `task: {name: chat, ...}`.
Shapes: B rows of a micro-batch, L tokens of its longest row.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from featherweight.errors import ConfigError
from featherweight.models.facts import model_facts
from featherweight.models.load import load_model, load_tokenizer
from featherweight.models.quiet import quiet_transformers
from featherweight.models.save import save_model_folder
from featherweight.models.templates import EncodedConversation, choose_template, encode_conversation, stop_ids
from featherweight.models.weights import begins_pretrained, check_weights
from featherweight.text.causal_loss import held_out_metrics, summed_loss
from featherweight.text.conversation import Conversation
from featherweight.text.conversation_data import (
    ConversationConfig,
    beginning_of_conversation,
    load_records,
    split_records,
    template_name,
)
from featherweight.text.instructions import pad_batch
from featherweight.text.packing import IGNORED_LABEL, predicted_tokens
from featherweight.text.skeleton import TextSkeleton
from featherweight.training.order import micro_batch_numbers, shuffled_rows
from featherweight.training.task import Batch, Split, Task, Words


class ChatConfig(ConversationConfig):
    """Options of the task of conversations."""

    train_on: Literal["assistant", "last"] = "assistant"
    """assistant: all its turns are learnt. last: the last one of each conversation."""
    long_rows: Literal["cut_turns", "leave_out", "refuse"] = "cut_turns"
    """What happens to longer ones. cut_turns: whole turns go from the end until the rest fits, so that an answer is
    never cut; where not even the first answer fits, the row is left out. leave_out: the row is left out. refuse: an
    error. The report counts them."""
    pack: bool = False
    """True: several conversations stand in one row of max_tokens; each sees itself alone. False: rows are padded."""


@dataclass(frozen=True)
class ChatRow:
    """One row of a split: a conversation, or several that were packed."""

    ids: tuple[int, ...]
    labels: tuple[int, ...]
    starts: tuple[int, ...] = (0,)
    """Where conversations begin."""


@dataclass
class Fitting:
    """What became of rows that are too long."""

    whole: int = 0
    cut: int = 0
    left_out: int = 0
    turns_cut: int = 0
    longest: int = 0
    examples: list[str] = field(default_factory=list)
    """Places of the first rows that were cut or left out."""


class ChatTask(Task):
    """Answer as the assistant of the conversations does.

    The loss counts the tokens of the assistant's turns with the marks that end them. Rows of a micro-batch are padded
    behind their end to its longest one, where causal attention does not look, so no mask is needed; packed rows number
    the positions of each conversation from 0, by which models of transformers keep them apart.

    Args:
        config: options.
        seed: of the weights of a new model.
    Raises:
        ConfigError: if model, tokenizer, template and data do not exist or do not fit each other; the message names
        file and line.
    """

    Config = ChatConfig
    length_key = "max_tokens"
    words = Words()

    @classmethod
    def skeleton(cls, config: ChatConfig, *, seed: int, layers: int | None = None) -> TextSkeleton:
        """Return a task whose rows all have `max_tokens`, without data and weights; see `Skeleton`."""
        return TextSkeleton(config.model, seq_len=config.max_tokens, layers=layers, length_key="max_tokens")

    @classmethod
    def is_pretrained(cls, config: ChatConfig) -> bool:
        """Tell whether training begins with the weights of a trained model."""
        return begins_pretrained(config.model, config.weights)

    @classmethod
    def check_weights(cls, config: ChatConfig, adapters: Sequence[str] = ()) -> None:
        """Refuse a shape without weights, and adapters on random ones; see `featherweight.models.weights`."""
        check_weights(config.model, config.weights, adapters=adapters, where="task chat")

    def __init__(self, config: ChatConfig, *, seed: int) -> None:
        self.config = config
        self.seed = seed
        tokenizer: Any = load_tokenizer(config.tokenizer or config.model)
        self.tokenizer = tokenizer
        choose_template(self.tokenizer, config.template, where="task chat")
        training, held_out = self._split()
        self.facts = model_facts(config.model, tokenizer=self.tokenizer)
        longest = self.facts.max_position_embeddings
        if longest is not None and config.max_tokens > longest:
            raise ConfigError(
                f"task chat: max_tokens={config.max_tokens} is longer than max_position_embeddings={longest} of model "
                f"'{self.facts.name}'; expected 8 <= max_tokens <= {longest}. Lower max_tokens or choose another model."
            )
        self.fitting = {"train": Fitting(), "held_out": Fitting()}
        self._rows: dict[Split, list[ChatRow]] = {
            "train": self._encode(training[: config.max_train_rows], self.fitting["train"]),
            "held_out": self._encode(held_out[: config.max_held_out_rows], self.fitting["held_out"]),
        }
        if config.pack:
            self._rows["train"] = packed(self._rows["train"], config.max_tokens)
        self._stops = stop_ids(self.tokenizer)
        pad: int | None = tokenizer.pad_token_id
        self._pad = pad if pad is not None else (self._stops or [0])[0]

    def build_model(self) -> nn.Module:
        """Return the model with float32 weights on the CPU; random weights follow from the task's seed.

        Its generation ends where answers under the template end.
        """
        model = load_model(
            self.config.model,
            tokenizer=self.tokenizer,
            seed=self.seed,
            random_weights=self.config.weights == "random",
        )
        settings: Any = getattr(model, "generation_config", None)
        if settings is not None and self._stops:
            settings.eos_token_id = self._stops if len(self._stops) > 1 else self._stops[0]
            settings.pad_token_id = self._pad
        return model

    def train_rows(self) -> int:
        """Return the rows of one epoch."""
        return len(self._rows["train"])

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

        Packed rows have "position_ids": (B, L) int64, too. Arguments: see `Task.batches`.

        Raises:
            ConfigError: if a number is out of range.
        """
        numbers = micro_batch_numbers(
            micro_batch_size=micro_batch_size,
            process_rank=process_rank,
            world_size=world_size,
            start=start,
            where="task chat",
        )
        rows = self._rows[split]
        if split == "train":
            orders = shuffled_rows(numbers, micro_batch_size=micro_batch_size, row_count=len(rows), seed=seed)
            return (self._batch([rows[row] for row in chosen]) for chosen in orders)
        pieces = (rows[number * micro_batch_size : (number + 1) * micro_batch_size] for number in numbers)
        return (self._batch(piece) for piece in _until_empty(pieces))

    @property
    def guessing_loss(self) -> float:
        """Loss of a model that knows nothing: the logarithm of the size of its vocabulary, in nats."""
        return math.log(self.facts.vocab_size)

    def item_count(self, batch: Batch) -> int:
        """Return how many tokens the loss of `batch` sums over: those of the assistant."""
        return predicted_tokens(batch["labels"])

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, int]:
        """Return the float32 sum of the losses of the assistant's tokens, with its graph, and their number."""
        return summed_loss(model, batch)

    def evaluate(self, model: nn.Module, *, micro_batch_size: int) -> dict[str, float]:
        """Return held_out_loss (mean over the assistant's tokens, in nats), perplexity (its exponential) and tokens."""
        return held_out_metrics(model, self.batches("held_out", micro_batch_size=micro_batch_size, seed=0), self.loss)

    def save_model(self, model: nn.Module, folder: Path) -> None:
        """Write model and tokenizer, with the template that trained, as a folder that `transformers` opens.

        Raises:
            ConfigError: if the folder holds something else, or cannot be written.
        """
        save_model_folder(model, self.tokenizer, Path(folder))

    def describe(self) -> dict[str, object]:
        """Return names and exact counts for the report; tokens of a split are those that the loss counts."""
        config = self.config
        facts: dict[str, object] = {
            "model": self.facts.name,
            "weights": "pretrained" if self.is_pretrained(self.config) else "random",
            "model_type": self.facts.model_type,
            "parameters": self.facts.parameters,
            "vocab_size": self.facts.vocab_size,
            "data": config.data,
            "template": template_name(config),
            "train_on": config.train_on,
            "max_tokens": config.max_tokens,
        }
        for name, rows in self._rows.items():
            fitting = self.fitting[name]
            facts[f"{name}_rows"] = len(rows)
            facts[f"{name}_tokens"] = sum(label != IGNORED_LABEL for row in rows for label in row.labels)
            facts[f"{name}_tokens_seen"] = sum(len(row.ids) for row in rows)
            facts[f"{name}_cut_rows"] = fitting.cut
            facts[f"{name}_cut_turns"] = fitting.turns_cut
            facts[f"{name}_left_out_rows"] = fitting.left_out
        return facts

    # ---- data --------------------------------------------------------------------------------------------------------

    def _split(self) -> tuple[list[Conversation], list[Conversation]]:
        config, kinds = self.config, (Conversation,)
        rows = load_records(config.data, config, kinds, "task chat")
        named = config.held_out if isinstance(config.held_out, str) else None
        held_out = None if named is None else load_records(named, config, kinds, "task chat")
        return split_records(rows, held_out, config, beginning_of_conversation, "task chat")

    def _encode(self, conversations: Sequence[Conversation], fitting: Fitting) -> list[ChatRow]:
        with quiet_transformers():
            rows = [row for one in conversations if (row := self._fitted(one, fitting)) is not None]
        if not rows:
            raise ConfigError(
                f"task chat: max_tokens={self.config.max_tokens} leaves out all {len(conversations)} conversations of "
                f"one split, the longest of {fitting.longest} tokens; expected a length that some have. Raise "
                "max_tokens."
            )
        return rows

    def _fitted(self, conversation: Conversation, fitting: Fitting) -> ChatRow | None:
        """Return the row of a conversation, perhaps without its last turns; None if it is left out."""
        config = self.config
        encoded = self._tokens(conversation)
        fitting.longest = max(fitting.longest, len(encoded.ids))
        if len(encoded.ids) <= config.max_tokens:
            fitting.whole += 1
            return self._row(encoded)
        if config.long_rows == "refuse":
            raise ConfigError(
                f"{conversation.where}: {len(encoded.ids)} tokens are more than max_tokens={config.max_tokens}; "
                "expected rows that fit. Raise max_tokens, or set long_rows: cut_turns or leave_out."
            )
        fitting.examples += [conversation.where][: 3 - len(fitting.examples)]
        answers = conversation.answers if config.long_rows == "cut_turns" else []
        for answer in reversed(answers[:-1]):
            rest = Conversation(conversation.turns[: answer + 1], conversation.tools, conversation.where)
            encoded = self._tokens(rest)
            if len(encoded.ids) <= config.max_tokens:
                fitting.cut += 1
                fitting.turns_cut += len(conversation.turns) - len(rest.turns)
                return self._row(encoded)
        fitting.left_out += 1
        return None

    def _tokens(self, conversation: Conversation) -> EncodedConversation:
        return encode_conversation(
            self.tokenizer,
            conversation.messages(),
            tools=conversation.tools,
            last_only=self.config.train_on == "last",
            where=conversation.where,
        )

    def _row(self, encoded: EncodedConversation) -> ChatRow:
        return ChatRow(encoded.ids, tuple(encoded.labels(ignored=IGNORED_LABEL)))

    def _batch(self, rows: Sequence[ChatRow]) -> dict[str, Tensor]:
        batch = pad_batch([{"input_ids": row.ids, "labels": row.labels} for row in rows], self._pad)
        del batch["attention_mask"]
        if self.config.pack and any(len(row.starts) > 1 for row in rows):
            batch["position_ids"] = positions(rows, batch["input_ids"].shape[1])
        return batch


def positions(rows: Sequence[ChatRow], length: int) -> Tensor:
    """Return the positions of packed rows, from 0 in each conversation, and in the padding behind them.

    Args:
        rows: of a micro-batch.
        length: tokens of its longest row, L.
    Returns:
        (B, L) int64.
    Example:
        >>> positions([ChatRow((5, 6, 7), (5, 6, 7), (0, 2))], 5)
        tensor([[0, 1, 0, 0, 1]])
    """
    result = torch.empty((len(rows), length), dtype=torch.int64)
    for row, line in zip(rows, result, strict=True):
        edges = [*row.starts, len(row.ids), length]
        for start, stop in zip(edges, edges[1:], strict=False):
            line[start:stop] = torch.arange(stop - start)
    return result


def packed(rows: Sequence[ChatRow], max_tokens: int) -> list[ChatRow]:
    """Join rows so that few tokens stay free: each, from the longest on, into the fullest row that has room.

    Args:
        rows: none longer than `max_tokens`.
        max_tokens: of a joined row.
    Returns:
        Rows whose `starts` say where each begins. No token is lost; the first of each has no label.
    Cost: every row is compared with the free lengths of the joined ones, of which there are at most `max_tokens`.
    """
    by_room: dict[int, list[list[ChatRow]]] = {}
    for row in sorted(rows, key=lambda one: -len(one.ids)):
        room = min((free for free, waiting in by_room.items() if waiting and free >= len(row.ids)), default=None)
        group = [] if room is None else by_room[room].pop()
        group.append(row)
        free = (max_tokens if room is None else room) - len(row.ids)
        by_room.setdefault(free, []).append(group)
    groups = [group for waiting in by_room.values() for group in waiting]
    return [_joined(group) for group in groups]


def _joined(group: Sequence[ChatRow]) -> ChatRow:
    starts: list[int] = []
    ids: list[int] = []
    labels: list[int] = []
    for row in group:
        starts.append(len(ids))
        ids += row.ids
        labels += [IGNORED_LABEL, *row.labels[1:]]
    return ChatRow(tuple(ids), tuple(labels), tuple(starts))


def _until_empty(pieces: Iterator[list[ChatRow]]) -> Iterator[list[ChatRow]]:
    for piece in pieces:
        if not piece:
            return
        yield piece
