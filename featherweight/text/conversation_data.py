"""What tasks on rows with columns share: options of model and data, reading, and the split."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from featherweight.errors import ConfigError
from featherweight.text.conversation import Conversation, Record, Turn, of_kind
from featherweight.text.corpus import split_documents
from featherweight.text.formats import records
from featherweight.text.options import ConversationConfig, RowsConfig
from featherweight.text.row_order import RowOrder
from featherweight.text.rows import read_rows
from featherweight.text.sources import Data, data_name, sources_of, weights_of

One = TypeVar("One")


@dataclass(frozen=True)
class Part(Generic[One]):
    """The rows of one split, by source."""

    rows: list[One]
    sources: list[int]
    """Of each row, the number of its source."""

    def limited(self, count: int | None) -> "Part[One]":
        """Return the first so many rows, of each source its share; None keeps all."""
        if count is None or count >= len(self.rows):
            return self
        seen: Counter[int] = Counter()
        ranks = []
        for source in self.sources:
            ranks.append(seen[source])
            seen[source] += 1
        # The first row of every source, then the second of every one, until there are enough.
        chosen = sorted(sorted(range(len(ranks)), key=lambda place: (ranks[place], place))[:count])
        return Part([self.rows[place] for place in chosen], [self.sources[place] for place in chosen])


def load_records(data: Data, config: ConversationConfig, kinds: tuple[type[Record], ...], where: str) -> "Part[Any]":
    """Return what the rows of the data say.

    Args:
        data: of the task, or what it holds out.
        config: how columns are read.
        kinds: of records that the task learns from.
        where: opens messages: "task chat".
    Raises:
        ConfigError: for a row that is not understood, or is of another kind.
    """
    found: Part[Any] = Part([], [])
    for number, (source, reading) in enumerate(sources_of(data, config.columns, config.ignore_columns, where=where)):
        for one in of_kind(records(read_rows(source.path), **reading), source.path, kinds, where):
            found.rows.append(one)
            found.sources.append(number)
    return found


def split_records(
    found: Part[One],
    held_out: Part[One] | None,
    config: RowsConfig,
    beginning: Callable[[One], str],
    where: str,
) -> tuple[Part[One], Part[One]]:
    """Return training and held-out rows; rows that begin alike stand on one side.

    Args:
        found: rows of the data.
        held_out: rows of the file to hold out, if one is named.
        config: share and seed.
        beginning: what a row begins with, in words.
        where: opens messages.
    Raises:
        ConfigError: if nothing is left to train on, of one of the sources either, or to hold out.
    """
    name = data_name(config.data)
    beginnings = [beginning(row) for row in found.rows]
    if held_out is not None:
        known = {beginning(row) for row in held_out.rows}
        training = _chosen(found, [text not in known for text in beginnings])
        if not training.rows:
            raise ConfigError(
                f"{where}: data={name} holds no row that does not begin as one of held_out={config.held_out}; "
                "expected some to train on. Hold out another file, or a share such as 0.05."
            )
    else:
        if len(set(beginnings)) < 2:
            raise ConfigError(
                f"{where}: data={name} holds rows that all begin alike; expected 2 or more, one of them to hold "
                "out. Add rows, or name a second file in held_out."
            )
        assert isinstance(config.held_out, float)
        trained = set(split_documents(beginnings, config.held_out, config.held_out_seed)[0])
        training = _chosen(found, [text in trained for text in beginnings])
        held_out = _chosen(found, [text not in trained for text in beginnings])
    _require_every_source(training, config, where)
    return training, held_out


def _chosen(found: Part[One], is_chosen: Sequence[bool]) -> Part[One]:
    places = [place for place, chosen in enumerate(is_chosen) if chosen]
    return Part([found.rows[place] for place in places], [found.sources[place] for place in places])


def _require_every_source(training: Part[Any], config: RowsConfig, where: str) -> None:
    if isinstance(config.data, str):
        return
    left = set(range(len(config.data))) - set(training.sources)
    if left:
        name = data_name([config.data[min(left)]])
        raise ConfigError(
            f"{where}: data={name} has no row left to train on beside what is held out; expected one or more of every "
            "source. Leave the source out, or add rows to it."
        )


def order_of(config: RowsConfig, sources: Sequence[int], lengths: Sequence[int]) -> RowOrder:
    """Return how training rows are drawn.

    Args:
        config: weights of sources, and whether rows of like length stand together.
        sources: of each row, the number of its source.
        lengths: of each row, in tokens.
    """
    grouped = lengths if config.group_by_length else None
    weights = weights_of(config.data)
    if weights is None:
        return RowOrder([range(len(sources))], None, grouped)
    rows = [[row for row, of in enumerate(sources) if of == number] for number in range(len(weights))]
    return RowOrder(rows, weights, grouped)


def beginning_of(turns: Sequence[Turn]) -> str:
    """Return turns as one text that tells them from others."""
    return "\0".join(f"{turn.role}\0{turn.content}" for turn in turns)


def beginning_of_conversation(conversation: Conversation) -> str:
    """Return what stands before the first answer."""
    return beginning_of(conversation.turns[: conversation.answers[0]])


def template_name(config: ConversationConfig) -> str:
    """Return what reports call the template."""
    if config.template is None:
        return "the tokenizer's own"
    return config.template if "{" not in config.template else "a text of Jinja"
