"""What a file of chat data holds and what a model would learn from it: counts, lengths, and examples token by token.

Used by `fw data inspect` and `fw init`. It reads and encodes as `ChatTask` does, so that what it shows is what trains.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from featherweight.errors import ConfigError
from featherweight.text.conversation import Conversation, Document, Judgement, Preference, Record
from featherweight.text.formats import Understanding, records, understand
from featherweight.text.rows import read_rows


@dataclass(frozen=True)
class Piece:
    """A run of tokens of an example, all learnt or all masked."""

    text: str
    is_learnt: bool
    tokens: int


@dataclass(frozen=True)
class Example:
    """One row as the model sees it."""

    where: str
    pieces: tuple[Piece, ...]
    label: str = ""
    """"chosen" or "rejected" of a preference."""


@dataclass
class Survey:
    """The facts of a source."""

    source: str
    format: str
    columns: Mapping[str, str]
    """Field to column."""
    ignored: tuple[str, ...]
    kind: str = ""
    """conversation, preference, judgement or document."""
    rows: int = 0
    turns: Counter[str] = field(default_factory=Counter)
    """Role to its number of turns."""
    with_system: int = 0
    with_tools: int = 0
    lengths: list[int] = field(default_factory=list)
    """Tokens of each conversation that was encoded."""
    learnt: list[int] = field(default_factory=list)
    """Of these, the tokens that are learnt."""
    examples: list[Example] = field(default_factory=list)

    def longer_than(self, max_tokens: int) -> int:
        """Return how many conversations do not fit."""
        return sum(length > max_tokens for length in self.lengths)

    def quantile(self, share: float) -> int:
        """Return the length that a share of the conversations does not exceed; 0 without any."""
        ordered = sorted(self.lengths)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0


def understand_source(
    source: str, *, columns: Mapping[str, str] | None = None, ignore_columns: Sequence[str] = ()
) -> Understanding:
    """Return how the first row of a source is read; quick, as nothing else is looked at.

    Raises:
        ConfigError: if it is missing, empty or of no known format.
    """
    where, row = next(read_rows(source))
    if not isinstance(row, Mapping):
        raise ConfigError(
            f"{where}: the row is a {type(row).__name__}; expected an object with columns. Correct the row."
        )
    return understand(row, where, columns=columns, ignore_columns=ignore_columns)


def survey(
    source: str,
    tokenizer: Any = None,
    *,
    columns: Mapping[str, str] | None = None,
    ignore_columns: Sequence[str] = (),
    last_only: bool = False,
    examples: int = 3,
    max_encoded: int = 2000,
) -> Survey:
    """Read a source to its end and say what it holds.

    Args:
        source: see `read_rows`.
        tokenizer: with its template; None counts rows and turns alone.
        columns: see `understand`.
        ignore_columns: see `understand`.
        last_only: the last answer of a conversation is learnt alone.
        examples: how many rows to show, the first ones.
        max_encoded: rows to encode; lengths of more are those of these.
    Raises:
        ConfigError: for a row that is not understood or that the template refuses, with its place.
    """
    found: Survey | None = None
    for record in records(read_rows(source), columns=columns, ignore_columns=ignore_columns):
        if found is None:
            read = understand_source(source, columns=columns, ignore_columns=ignore_columns)
            found = Survey(source, read.format.name, read.columns, read.ignored, type(record).__name__.lower())
        found.rows += 1
        conversations = _conversations(record)
        for _, conversation in conversations:
            found.turns.update(turn.role for turn in conversation.turns)
        if conversations:
            first = conversations[0][1]
            found.with_system += first.turns[0].role == "system"
            found.with_tools += bool(first.tools)
        if tokenizer is not None and found.rows <= max_encoded:
            for label, conversation in conversations:
                _encode(found, tokenizer, conversation, label, last_only, show=found.rows <= examples)
    assert found is not None, "read_rows refuses a source without rows"
    return found


def _conversations(record: Record) -> list[tuple[str, Conversation]]:
    if isinstance(record, Preference):
        return list(zip(("chosen", "rejected"), record.conversations(), strict=True))
    if isinstance(record, Judgement):
        return [("good" if record.is_good else "bad", record.conversation)]
    return [] if isinstance(record, Document) else [("", record)]


def _encode(
    found: Survey, tokenizer: Any, conversation: Conversation, label: str, last_only: bool, *, show: bool
) -> None:
    from featherweight.models.templates import encode_conversation

    encoded = encode_conversation(
        tokenizer, conversation.messages(), tools=conversation.tools, last_only=last_only, where=conversation.where
    )
    found.lengths.append(len(encoded.ids))
    found.learnt.append(sum(stop - start for start, stop in encoded.answer_spans))
    if show:
        found.examples.append(Example(conversation.where, tuple(pieces(tokenizer, encoded)), label))


def pieces(tokenizer: Any, encoded: Any) -> list[Piece]:
    """Return an encoded conversation as runs of learnt and masked tokens, special ones included."""
    edges = [0, *(edge for span in encoded.answer_spans for edge in span), len(encoded.ids)]
    found = []
    for number, (start, stop) in enumerate(zip(edges, edges[1:], strict=False)):
        if stop > start:
            found.append(Piece(tokenizer.decode(list(encoded.ids[start:stop])), number % 2 == 1, stop - start))
    return found
