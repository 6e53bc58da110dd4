"""From conversations to rows of tokens: what fits stays whole, what does not loses whole turns, short ones are packed.

Shapes: B rows of a micro-batch, L tokens of its longest one.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from featherweight.errors import ConfigError
from featherweight.models.templates import EncodedConversation, encode_conversation
from featherweight.text.conversation import Conversation, Role
from featherweight.text.options import LongRows, TrainOn
from featherweight.text.packing import IGNORED_LABEL


@dataclass(frozen=True)
class ChatRow:
    """One row of a split: a conversation, or several that were packed."""

    ids: tuple[int, ...]
    labels: tuple[int, ...]
    starts: tuple[int, ...] = (0,)
    """Where conversations begin."""


@dataclass
class Fitting:
    """What became of the conversations of a split."""

    whole: int = 0
    cut: int = 0
    left_out: int = 0
    turns_cut: int = 0
    without: int = 0
    """Left out, as they have no turn of the roles that are learnt."""
    longest: int = 0
    examples: list[str] = field(default_factory=list)
    """Places of the first rows that were cut or left out."""


@dataclass(frozen=True)
class ChatEncoder:
    """Makes rows of conversations, in one template and with one limit."""

    tokenizer: Any
    train_on: TrainOn
    max_tokens: int
    long_rows: LongRows
    vocab_size: int

    @property
    def roles(self) -> tuple[Role, ...]:
        """Whose turns are learnt."""
        return ("assistant",) if isinstance(self.train_on, str) else tuple(self.train_on)

    def row(self, conversation: Conversation, fitting: Fitting) -> ChatRow | None:
        """Return the row of a conversation, perhaps without its last turns; None if it is left out.

        Args:
            conversation: not changed.
            fitting: counts what became of it.
        Raises:
            ConfigError: for one that is too long and may not be, or that template or tokenizer refuse.
        """
        learnt = [index for index, turn in enumerate(conversation.turns) if turn.role in self.roles]
        if not learnt:
            fitting.without += 1
            return None
        encoded = self._tokens(conversation)
        fitting.longest = max(fitting.longest, len(encoded.ids))
        if len(encoded.ids) <= self.max_tokens:
            fitting.whole += 1
            return self._row(encoded, conversation)
        if self.long_rows == "refuse":
            raise ConfigError(
                f"{conversation.where}: {len(encoded.ids)} tokens are more than max_tokens={self.max_tokens}; "
                "expected rows that fit. Raise max_tokens, or set long_rows: cut_turns or leave_out."
            )
        fitting.examples += [conversation.where][: 3 - len(fitting.examples)]
        for last in reversed(learnt[:-1] if self.long_rows == "cut_turns" else []):
            rest = Conversation(conversation.turns[: last + 1], conversation.tools, conversation.where)
            encoded = self._tokens(rest)
            if len(encoded.ids) <= self.max_tokens:
                fitting.cut += 1
                fitting.turns_cut += len(conversation.turns) - len(rest.turns)
                return self._row(encoded, conversation)
        fitting.left_out += 1
        return None

    def _tokens(self, conversation: Conversation) -> EncodedConversation:
        return encode_conversation(
            self.tokenizer,
            conversation.messages(),
            tools=conversation.tools,
            last_only=self.train_on == "last",
            roles=self.roles,
            where=conversation.where,
        )

    def _row(self, encoded: EncodedConversation, conversation: Conversation) -> ChatRow:
        highest = max(encoded.ids)
        if highest >= self.vocab_size:
            raise ConfigError(
                f"{conversation.where}: token id={highest} of the tokenizer is outside the model's "
                f"vocab_size={self.vocab_size}; expected the tokenizer that belongs to the model. Leave tokenizer "
                "unset, or choose a template whose marks the model knows."
            )
        return ChatRow(encoded.ids, tuple(encoded.labels(ignored=IGNORED_LABEL)))


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
