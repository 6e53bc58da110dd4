"""Conversations as a task: in the model's own chat template, of which the assistant's words alone are learnt.

Implements `featherweight.training.task.Task`; recipes reach it by `task: {name: chat, ...}`.
Shapes: B rows of a micro-batch, L tokens of its longest row.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor, nn

from featherweight.errors import ConfigError
from featherweight.models.facts import model_facts
from featherweight.models.load import load_tokenizer
from featherweight.models.quiet import quiet_transformers
from featherweight.models.templates import choose_template
from featherweight.text.causal_task import CausalTask, Endings, begin_model
from featherweight.text.chat_rows import ChatEncoder, ChatRow, Fitting, packed, positions
from featherweight.text.conversation import Conversation
from featherweight.text.conversation_data import (
    Part,
    beginning_of_conversation,
    load_records,
    order_of,
    split_records,
    template_name,
)
from featherweight.text.instructions import pad_batch
from featherweight.text.language_task import facts_of, require_length
from featherweight.text.options import ChatConfig
from featherweight.text.packing import IGNORED_LABEL
from featherweight.text.row_order import RowOrder
from featherweight.text.row_stream import RowStream, held_out_records
from featherweight.text.sources import data_name
from featherweight.training.task import Split, Words


class ChatTask(CausalTask):
    """Answer as the assistant of the conversations does.

    The loss counts the tokens of the assistant's turns with the marks that end them. Micro-batches are {"input_ids":
    (B, L) int64, "labels": (B, L) int64}, ignored labels -100, padded behind their end to the longest row, where causal
    attention does not look, so no mask is needed; packed rows have "position_ids" (B, L) int64, from 0 in each
    conversation, by which models of transformers keep them apart.

    Args:
        config: options.
        seed: of the weights of a new model.
    Raises:
        ConfigError: if model, tokenizer, template and data do not exist or do not fit each other; the message names
        file and line.
    """

    Config = ChatConfig
    where = ChatConfig.where
    words = Words()

    def __init__(self, config: ChatConfig, *, seed: int) -> None:
        self.config = config
        self.seed = seed
        self.tokenizer: Any = load_tokenizer(config.tokenizer or config.model)
        choose_template(self.tokenizer, config.template, where=self.where)
        training, held_out = self._streamed_split() if config.stream else self._split()
        self.facts = model_facts(config.model, tokenizer=self.tokenizer)
        require_length(self, self.facts)
        self._encoder = ChatEncoder(
            self.tokenizer, config.train_on, config.max_tokens, config.long_rows, self.facts.vocab_size
        )
        self.fitting: dict[Split, Fitting] = {"train": Fitting(), "held_out": Fitting()}
        self._rows: dict[Split, list[ChatRow]] = {"train": [], "held_out": []}
        self._sources: list[int] = []
        if training is not None:
            rows = self._encode(training.limited(config.max_train_rows), "train")
            self._rows["train"], self._sources = self._packed(rows) if config.pack else (rows.rows, rows.sources)
        self._rows["held_out"] = self._encode(held_out.limited(config.max_held_out_rows), "held_out").rows
        self._endings = Endings.of(self.tokenizer, where=self.where)

    def build_model(self) -> nn.Module:
        """Return the model with float32 weights on the CPU; random weights follow from the task's seed.

        Its generation ends where answers under the template end.
        """
        model = begin_model(self)
        self._endings.write(model)
        return model

    def row_count(self, split: Split) -> int:
        """Return the rows of a split; of a stream, those that were drawn."""
        return len(self._rows[split])

    def row_order(self) -> RowOrder:
        """Mix sources by their weights, and group by length, where asked for."""
        return order_of(self.config, self._sources, [len(row.ids) for row in self._rows["train"]])

    def collate(self, split: Split, rows: Sequence[int]) -> dict[str, Tensor]:
        """Return rows of a split as a micro-batch."""
        return self._batch([self._rows[split][row] for row in rows])

    def describe(self) -> dict[str, object]:
        """Return names and exact counts for the report; tokens of a split are those that the loss counts.

        Training rows that are streamed are counted as far as they were read.
        """
        config = self.config
        facts = facts_of(self, self.facts) | {
            "data": data_name(config.data),
            "template": template_name(config),
            "train_on": config.train_on,
            "max_tokens": config.max_tokens,
            "streamed": config.stream,
        }
        for name, rows in self._rows.items():
            fitting = self.fitting[name]
            if not (config.stream and name == "train"):
                facts[f"{name}_rows"] = len(rows)
                facts[f"{name}_tokens"] = sum(label != IGNORED_LABEL for row in rows for label in row.labels)
                facts[f"{name}_tokens_seen"] = sum(len(row.ids) for row in rows)
            facts[f"{name}_cut_rows"] = fitting.cut
            facts[f"{name}_cut_turns"] = fitting.turns_cut
            facts[f"{name}_left_out_rows"] = fitting.left_out + fitting.without
        return facts

    # ---- data --------------------------------------------------------------------------------------------------------

    def _split(self) -> tuple[Part[Conversation], Part[Conversation]]:
        config, kinds = self.config, (Conversation,)
        rows = load_records(config.data, config, kinds, self.where)
        named = config.held_out if isinstance(config.held_out, str) else None
        held_out = None if named is None else load_records(named, config, kinds, self.where)
        return split_records(rows, held_out, config, beginning_of_conversation, self.where)

    def _streamed_split(self) -> tuple[None, Part[Conversation]]:
        return None, held_out_records(self.config, self.where)

    def _encode(self, part: Part[Conversation], split: Split) -> Part[ChatRow]:
        fitting = self.fitting[split]
        found: Part[ChatRow] = Part([], [])
        with quiet_transformers():
            for conversation, source in zip(part.rows, part.sources, strict=True):
                row = self._encoder.row(conversation, fitting)
                if row is not None:
                    found.rows.append(row)
                    found.sources.append(source)
        if set(found.sources) != set(part.sources):
            raise ConfigError(nothing_fits(self.config, fitting, len(part.rows)))
        return found

    def _packed(self, part: Part[ChatRow]) -> tuple[list[ChatRow], list[int]]:
        """Pack the rows of each source among themselves."""
        rows, sources = [], []
        for source in sorted(set(part.sources)):
            of_source = [row for row, its in zip(part.rows, part.sources, strict=True) if its == source]
            joined = packed(of_source, self.config.max_tokens)
            rows += joined
            sources += [source] * len(joined)
        return rows, sources

    def _train_batches(self, numbers: Iterator[int], micro_batch_size: int, seed: int) -> Iterator[dict[str, Tensor]]:
        if not self.config.stream:
            return super()._train_batches(numbers, micro_batch_size, seed)
        stream = RowStream(self.config, self._encoder, self.fitting["train"], seed, where=self.where)
        return (self._batch(rows) for rows in stream.micro_batches(numbers, micro_batch_size))

    def _batch(self, rows: Sequence[ChatRow]) -> dict[str, Tensor]:
        batch = pad_batch([{"input_ids": row.ids, "labels": row.labels} for row in rows], self._endings.pad)
        del batch["attention_mask"]
        if self.config.pack and any(len(row.starts) > 1 for row in rows):
            batch["position_ids"] = positions(rows, batch["input_ids"].shape[1])
        return batch


def nothing_fits(config: ChatConfig, fitting: Fitting, count: int) -> str:
    """Return the message for conversations of which none is left."""
    if fitting.without == count:
        return (
            f"task chat: train_on={config.train_on} finds no turn in all {count} conversations of one split; expected "
            "roles that have turns. Choose others, such as [assistant]."
        )
    return (
        f"task chat: max_tokens={config.max_tokens} leaves out all {count} conversations of one split or source, the "
        f"longest of {fitting.longest} tokens; expected a length that some have. Raise max_tokens."
    )
