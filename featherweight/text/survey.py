"""What a file of data holds and what a model would learn from it: counts, lengths, and examples token by token.

Used by `fw data inspect` and `fw init`. It reads and encodes as the tasks do, so that what it shows is what trains.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from featherweight.errors import ConfigError
from featherweight.text.conversation import Conversation, Document, Judgement, Preference, Record
from featherweight.text.formats import FORMATS, Understanding, fields_of, records, understand
from featherweight.text.labelled import FORMAT as CLASSIFICATION
from featherweight.text.labelled import columns_of, is_labelled, labelled_texts
from featherweight.text.rows import Row, read_rows


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
    """conversation, preference, judgement, classification or document."""
    rows: int = 0
    turns: Counter[str] = field(default_factory=Counter)
    """Role to its number of turns."""
    with_system: int = 0
    with_tools: int = 0
    lengths: list[int] = field(default_factory=list)
    """Tokens of each conversation that was encoded."""
    learnt: list[int] = field(default_factory=list)
    """Of these, the tokens that are learnt."""
    classes: Counter[str] = field(default_factory=Counter)
    """Of labelled texts, the rows of each class."""
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

    A row with a text and a class, and of no format of conversations, is one for the task classification.

    Raises:
        ConfigError: if it is missing, empty or of no known format.
    """
    where, row = next(read_rows(source))
    if not isinstance(row, Mapping):
        raise ConfigError(
            f"{where}: the row is a {type(row).__name__}; expected an object with columns. Correct the row."
        )
    if is_labelled(row, columns) and not _is_conversation(row, columns):
        found = columns_of(row, where, columns or {}, needs_label=True)
        left = tuple(str(name) for name in row if name not in found.values())
        return Understanding(CLASSIFICATION, found, left)
    return understand(row, where, columns=columns, ignore_columns=ignore_columns)


def _is_conversation(row: Row, columns: Mapping[str, str] | None) -> bool:
    """Tell whether a row has the columns of a format other than documents."""
    return any(
        one.name != "text" and all(field in fields_of(row, columns or {}) for field in one.needed) for one in FORMATS
    )


def survey(
    source: str,
    tokenizer: Any = None,
    *,
    columns: Mapping[str, str] | None = None,
    ignore_columns: Sequence[str] = (),
    train_on: str | list[str] = "assistant",
    examples: int = 3,
    max_encoded: int = 2000,
) -> Survey:
    """Read a source to its end and say what it holds.

    Args:
        source: see `read_rows`.
        tokenizer: with its template; None counts rows and turns alone.
        columns: see `understand`.
        ignore_columns: see `understand`.
        train_on: assistant, last, or a list of roles, as in the task chat; of preferences and judgements the last
            answers are learnt in any case.
        examples: how many rows to show, the first ones.
        max_encoded: rows to encode; lengths of more are those of these.
    Raises:
        ConfigError: for a row that is not understood or that the template refuses, with its place.
    """
    read = understand_source(source, columns=columns, ignore_columns=ignore_columns)
    found = Survey(source, read.format.name, read.columns, read.ignored)
    if read.format is CLASSIFICATION:
        found.kind = "classification"
        _survey_texts(found, tokenizer, columns, ignore_columns, examples, max_encoded)
        return found
    for record in records(read_rows(source), columns=columns, ignore_columns=ignore_columns):
        found.kind = type(record).__name__.lower()
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
                last_or_roles = train_on if isinstance(record, Conversation) else "last"
                _encode(found, tokenizer, conversation, label, last_or_roles, show=found.rows <= examples)
    return found


def _survey_texts(
    found: Survey,
    tokenizer: Any,
    columns: Mapping[str, str] | None,
    ignore_columns: Sequence[str],
    examples: int,
    max_encoded: int,
) -> None:
    for one in labelled_texts(read_rows(found.source), columns=columns, ignore_columns=ignore_columns):
        found.rows += 1
        found.classes[one.label] += 1
        if found.rows <= examples:
            text = one.text if one.pair is None else f"{one.text}\n{one.pair}"
            found.examples.append(Example(one.where, (Piece(text, False, 0),), one.label))
        if tokenizer is not None and found.rows <= max_encoded:
            found.lengths.append(len(tokenizer(one.text, one.pair)["input_ids"]))


def _conversations(record: Record) -> list[tuple[str, Conversation]]:
    if isinstance(record, Preference):
        return list(zip(("chosen", "rejected"), record.conversations(), strict=True))
    if isinstance(record, Judgement):
        return [("good" if record.is_good else "bad", record.conversation)]
    return [] if isinstance(record, Document) else [("", record)]


def _encode(
    found: Survey, tokenizer: Any, conversation: Conversation, label: str, train_on: str | list[str], *, show: bool
) -> None:
    from featherweight.models.templates import encode_conversation

    encoded = encode_conversation(
        tokenizer,
        conversation.messages(),
        tools=conversation.tools,
        last_only=train_on == "last",
        roles=train_on if isinstance(train_on, list) else ("assistant",),
        where=conversation.where,
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
