"""A layer of a cache that grows in place: it keeps room for tokens and rows, so that a new token copies nothing.

transformers' own layer copies all keys and values at every token, and at every row that joins or leaves a batch. For a
small model with many rows that is more work than the model's own. Values and their order are the same here.
Shapes: B rows, G key heads, L tokens, K head dimension.
"""

from collections.abc import Sequence
from copy import copy
from typing import Any, Self

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer

ROOM_TOKENS = 64
"""So many tokens more than there are fit in before a layer is copied again."""
ROOM_ROWS = 1.5
"""When rows join and do not fit, there is room for so many times the rows afterwards."""


class GrowingLayer(DynamicLayer):
    """Keys and values as views of buffers with room behind them, and in front where tokens were dropped there.

    What assigns `keys` and `values` from outside, as transformers' methods do, only costs a copy at the next token.
    """

    keys: Tensor | None
    values: Tensor | None

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._room: tuple[Tensor, Tensor] | None = None
        self._start = 0
        self._shown: Tensor | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write the keys and values of new tokens behind the others.

        Args:
            key_states: (B, G, P, K)
            value_states: the same; K may be another.
            args: not used.
            kwargs: not used.

        Returns:
            Those of all tokens: (B, G, L + P, K), views that later tokens do not change.
        """
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        rows, length, new = key_states.shape[0], self.get_seq_length(), key_states.shape[-2]
        if not self._fits(rows, new):
            self._move(rows, 0, length + new + ROOM_TOKENS, like=(key_states, value_states))
        assert self._room is not None, "moving makes room"
        end = self._start + length
        for room, states in zip(self._room, (key_states, value_states), strict=True):
            room[:rows, :, end : end + new] = states
        self._show(rows, self._start, length + new)
        assert self.keys is not None and self.values is not None, "they were just shown"
        return self.keys, self.values

    def crop(self, tokens_to_remove: int) -> None:
        """Forget tokens at the end; what is in front of them stays where it is.

        Args:
            tokens_to_remove: how many, as a negative number.
        """
        if tokens_to_remove > 0 or not self._is_shown:
            super().crop(tokens_to_remove)
        else:
            assert self.keys is not None, "it is shown"
            self._show(len(self.keys), self._start, max(0, self.get_seq_length() + tokens_to_remove))

    def take_rows(self, rows: Sequence[int]) -> None:
        """Keep, repeat or reorder rows; nothing moves but rows from behind that fill the places of those that go.

        Args:
            rows: indices below B.
        """
        moved = [(place, source) for place, source in enumerate(rows) if place != source]
        if not self._is_shown or self._room is None or any(source < len(rows) for _, source in moved):
            assert self.keys is not None, "it was read"
            self.reorder_cache(torch.tensor(rows, dtype=torch.int64, device=self.keys.device))
            return
        here = slice(self._start, self._start + self.get_seq_length())
        for room in self._room:
            for place, source in moved:
                room[place, :, here] = room[source, :, here]
        self._show(len(rows), self._start, self.get_seq_length())

    def take_columns(self, columns: Sequence[int]) -> None:
        """Keep some tokens of every row; those in front are dropped without a copy.

        Args:
            columns: their places, in order, at least one.
        """
        first, count = columns[0], len(columns)
        assert self.keys is not None and self.values is not None, "it was read"
        if self._is_shown and columns[-1] - first + 1 == count:
            self._show(len(self.keys), self._start + first, count)
            return
        kept = torch.tensor(columns, dtype=torch.int64, device=self.keys.device)
        self.keys, self.values = self.keys.index_select(-2, kept), self.values.index_select(-2, kept)

    def add_rows(self, others: Sequence[DynamicLayer]) -> None:
        """Take in the rows of other layers, with zeros in front of those that have fewer tokens.

        Args:
            others: that were read; not changed.
        """
        pairs = [(one.keys, one.values) for one in others]
        assert self.keys is not None, "it was read"
        own, before = len(self.keys), self.get_seq_length()
        length = max(before, *(keys.shape[-2] for keys, _ in pairs))
        rows, ahead = own + sum(len(keys) for keys, _ in pairs), length - before
        if not self._fits(rows, 0) or ahead > self._start:
            has_rows = self._room is not None and rows <= len(self._room[0])
            self._move(rows if has_rows else int(ROOM_ROWS * rows), ahead, length + ROOM_TOKENS)
        assert self._room is not None, "moving makes room"
        start = self._start - ahead
        for index, room in enumerate(self._room):
            room[:own, :, start : self._start] = 0
            place = own
            for pair in pairs:
                states = pair[index]
                end, mine = start + length, slice(place, place + len(states))
                room[mine, :, start : end - states.shape[-2]] = 0
                room[mine, :, end - states.shape[-2] : end] = states
                place += len(states)
        self._show(rows, start, length)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        other = copy(self)
        other._shown = None  # what is there is copied, the room around it is not
        if self.is_initialized and self.keys is not None and self.get_seq_length() > 0:
            other._move(len(self.keys), 0, self.get_seq_length() + ROOM_TOKENS)
        else:
            other._room = None
        return other

    @property
    def _is_shown(self) -> bool:
        """Whether keys and values are those of the buffers, which nobody has replaced."""
        return self._shown is not None and self.keys is self._shown

    def _fits(self, rows: int, new: int) -> bool:
        if not self._is_shown or self._room is None:
            return False
        room = self._room[0]
        if room.is_inference() and not torch.is_inference_mode_enabled():
            return False  # such tensors may not be written to
        return rows <= len(room) and self._start + self.get_seq_length() + new <= room.shape[-2]

    def _move(self, rows: int, ahead: int, tokens: int, like: tuple[Tensor, Tensor] | None = None) -> None:
        """Copy what is there into new buffers.

        Args:
            rows: that fit in.
            ahead: room in front of what is there.
            tokens: that fit in, those ahead included.
            like: gives the other sizes where nothing is there yet.
        """
        length = self.get_seq_length()
        keys, values = (self.keys, self.values) if length or like is None else like
        assert keys is not None and values is not None, "there is something to copy"
        count = len(keys)
        self._room = (
            keys.new_empty((rows, keys.shape[1], tokens, keys.shape[3])),
            values.new_empty((rows, values.shape[1], tokens, values.shape[3])),
        )
        if length:
            for room, states in zip(self._room, (keys, values), strict=True):
                room[:count, :, ahead : ahead + length] = states
        self._show(count, ahead, length)

    def _show(self, rows: int, start: int, length: int) -> None:
        assert self._room is not None, "there are buffers"
        self._start = start
        self.keys, self.values = (room[:rows, :, start : start + length] for room in self._room)
        self._shown = self.keys
