"""Conversations that are read while training goes on: for folders that are larger than the memory.

Each source is read again and again, an epoch after the other: its files in an order of chance, its rows in blocks that
are shuffled. All follows from (seed, source, epoch, block), so a run that resumes reads and encodes again what came
before, and goes on with the same rows. A conversation belongs to the held-out split by a hash of its beginning alone.
"""

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from featherweight.errors import ConfigError
from featherweight.models.quiet import quiet_transformers
from featherweight.text.chat_rows import ChatEncoder, ChatRow, Fitting, packed
from featherweight.text.conversation import Conversation, of_kind
from featherweight.text.conversation_data import Part, beginning_of_conversation, load_records
from featherweight.text.corpus import place_of
from featherweight.text.formats import records
from featherweight.text.options import ChatConfig
from featherweight.text.row_order import WINDOW, Mixture
from featherweight.text.rows import read_rows, row_files
from featherweight.text.sources import Source, data_name, sources_of, weights_of

HELD_OUT_ROWS = 1000
"""Held-out rows of a stream where a recipe sets no limit: finding them takes a look at the rows before training."""
_PACKED_TOGETHER = 512


def held_out_records(config: ChatConfig, where: str) -> Part[Conversation]:
    """Return the held-out rows of data that are streamed: the first ones whose hash says so, or those of a file.

    Raises:
        ConfigError: if there are none, or a row that was read is not understood.
    """
    if isinstance(config.held_out, str):
        return load_records(config.held_out, config, (Conversation,), where)
    wanted = config.max_held_out_rows or HELD_OUT_ROWS
    sources = sources_of(config.data, config.columns, config.ignore_columns, where=where)
    share = -(-wanted // len(sources))
    found: Part[Conversation] = Part([], [])
    for number, (source, reading) in enumerate(sources):
        rows = (one for one in _conversations(source, reading, row_files(source.path), where) if _is_out(one, config))
        for one in itertools.islice(rows, share):
            found.rows.append(one)
            found.sources.append(number)
    if not found.rows:
        raise ConfigError(
            f"{where}: data={data_name(config.data)} has no row in the share held_out={config.held_out}; expected one "
            "or more. Raise held_out, or name a second file in it."
        )
    return found


class RowStream:
    """Training rows of a chat task, without end.

    Args:
        config: of the task.
        encoder: makes rows of conversations.
        fitting: counts what became of them.
        seed: of the order.
        where: opens messages.
    """

    def __init__(self, config: ChatConfig, encoder: ChatEncoder, fitting: Fitting, seed: int, *, where: str) -> None:
        self._config, self._encoder, self._fitting, self._seed, self._where = config, encoder, fitting, seed, where
        self._sources = sources_of(config.data, config.columns, config.ignore_columns, where=where)
        self._held_out: set[str] = set()
        if isinstance(config.held_out, str):
            rows = load_records(config.held_out, config, (Conversation,), where).rows
            self._held_out = {beginning_of_conversation(one) for one in rows}

    def micro_batches(self, numbers: Iterable[int], size: int) -> Iterator[list[ChatRow]]:
        """Yield the rows of each micro-batch; `numbers` rise.

        Raises:
            ConfigError: for a row that is not understood, with its place; or if no row fits.
        """
        batches = enumerate(self._batches(size))
        for wanted in numbers:
            yield next(rows for number, rows in batches if number == wanted)

    def _batches(self, size: int) -> Iterator[list[ChatRow]]:
        rows = self._rows()
        if not self._config.group_by_length:
            while True:
                yield list(itertools.islice(rows, size))
        for window in itertools.count():
            ordered = sorted(itertools.islice(rows, WINDOW * size), key=lambda row: -len(row.ids))
            for index in np.random.default_rng([self._seed, window, WINDOW]).permutation(WINDOW):
                yield ordered[index * size : (index + 1) * size]

    def _rows(self) -> Iterator[ChatRow]:
        weights = weights_of(self._config.data)
        if weights is None:
            yield from self._source_rows(list(enumerate(self._sources)))
        streams = [self._source_rows([one]) for one in enumerate(self._sources)]
        mixture = Mixture(weights or [], self._seed)
        for start in itertools.count(step=1024):
            for source in mixture.sources(start, start + 1024):
                yield next(streams[source])

    def _source_rows(self, sources: list[tuple[int, tuple[Source, dict[str, Any]]]]) -> Iterator[ChatRow]:
        """Yield the rows of sources that are read as one, epoch after epoch."""
        key = [self._seed, sources[0][0]]
        for epoch in itertools.count():
            count = 0
            for row in self._epoch(sources, [*key, epoch]):
                count += 1
                yield row
            if not count:
                name = ", ".join(source.path for _, (source, _) in sources)
                raise ConfigError(
                    f"{self._where}: data={name} has no row that can be trained on, and {self._fitting.left_out} that "
                    f"are too long, the longest of {self._fitting.longest} tokens; expected one or more. Raise "
                    "max_tokens, or lower held_out."
                )

    def _epoch(self, sources: list[tuple[int, tuple[Source, dict[str, Any]]]], key: list[int]) -> Iterator[ChatRow]:
        files = [(path, source, reading) for _, (source, reading) in sources for path in row_files(source.path)]
        order = np.random.default_rng(key).permutation(len(files))
        conversations = (
            one
            for place in order
            for one in _conversations(files[place][1], files[place][2], [files[place][0]], self._where)
            if not self._is_held_out(one)
        )
        for block in itertools.count():
            rows = list(itertools.islice(conversations, self._config.shuffle_rows))
            if not rows:
                return
            shuffled = (rows[place] for place in np.random.default_rng([*key, block]).permutation(len(rows)))
            yield from self._packed(self._encoded(shuffled))

    def _encoded(self, conversations: Iterable[Conversation]) -> Iterator[ChatRow]:
        for one in conversations:
            with quiet_transformers():
                row = self._encoder.row(one, self._fitting)
            if row is not None:
                yield row

    def _packed(self, rows: Iterator[ChatRow]) -> Iterator[ChatRow]:
        if not self._config.pack:
            yield from rows
            return
        while together := list(itertools.islice(rows, _PACKED_TOGETHER)):
            joined = packed(together, self._config.max_tokens)
            order = np.random.default_rng([self._seed, len(together)]).permutation(len(joined))
            yield from (joined[place] for place in order)

    def _is_held_out(self, one: Conversation) -> bool:
        if isinstance(self._config.held_out, str):
            return beginning_of_conversation(one) in self._held_out
        return _is_out(one, self._config)


def _is_out(one: Conversation, config: ChatConfig) -> bool:
    assert isinstance(config.held_out, float)
    return place_of(beginning_of_conversation(one), config.held_out_seed) <= config.held_out


def _conversations(source: Source, reading: dict[str, Any], files: list[str], where: str) -> Iterator[Conversation]:
    rows = itertools.chain.from_iterable(read_rows(path, is_streamed=True) for path in files)
    yield from of_kind(records(rows, **reading), source.path, (Conversation,), where)
