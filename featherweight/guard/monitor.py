"""The guard on a long answer: what the model computes anyway, token by token, is watched, and the newest tokens wait.

    z_t = decay * z_(t-1) + (1 - decay) * score(h_t),   z_0 = 0

h_t are the hidden states of the t-th token of an answer, the score a linear one. When z rises above the threshold, the
answer ends there, and the tokens that were held back are dropped. No forward pass is added.
Shapes: B rows, D hidden.
"""

from collections import deque
from collections.abc import Sequence

import torch
from torch import Tensor

from featherweight.guard.evidence import hidden_features
from featherweight.guard.linear import Linear
from featherweight.guard.options import MonitorOptions

NAME = "monitor"
"""Of its score among those of the tiers."""


class Monitor:
    """Watches the answers of B rows.

    Args:
        score: of the hidden states of a token.
        options: its settings.
        layers: hidden states that are read.
        rows: B.
    """

    def __init__(self, score: Linear, options: MonitorOptions, layers: tuple[int, ...], rows: int) -> None:
        self._score, self._options, self._layers = score, options, layers
        self.level = torch.zeros(rows)
        """(B,): z."""
        self.highest = torch.full((rows,), float("-inf"))
        """(B,): the highest z so far."""
        self.stopped_at: list[int | None] = [None] * rows
        """Tokens of each answer that were read when it was stopped."""
        self._seen = [0] * rows

    @property
    def hold_back(self) -> int:
        """Tokens that wait."""
        return self._options.hold_back

    def read(self, hidden_states: tuple[Tensor, ...], rows: Sequence[int] | None = None) -> list[bool]:
        """Take the hidden states of the newest token of each answer.

        Args:
            hidden_states: of all layers, each (rows, D).
            rows: which answers these are; None: all.

        Returns:
            Whether each of them is stopped. What is no number stops it, too.
        """
        places = list(range(len(self.level))) if rows is None else list(rows)
        scores = self._score(hidden_features(hidden_states, self._layers)).float().cpu()
        decay, limit = self._options.decay, self._options.stop_above
        for place, score in zip(places, scores.tolist(), strict=True):
            if self.stopped_at[place] is not None:
                continue
            self._seen[place] += 1
            level = decay * float(self.level[place]) + (1 - decay) * score
            self.level[place] = level
            self.highest[place] = max(float(self.highest[place]), level)
            if limit is not None and not level <= limit:
                self.stopped_at[place] = self._seen[place]
        return [self.stopped_at[place] is not None for place in places]

    def shown(self, row: int, written: int) -> int:
        """Return how many tokens of an answer may be shown, of those that were written."""
        stopped = self.stopped_at[row]
        return written if stopped is None else max(0, min(written, stopped - self._options.hold_back))


class HeldBack:
    """Tokens that wait until newer ones were watched.

    Args:
        count: how many wait.

    Example:
        >>> held = HeldBack(2)
        >>> [held.add(token) for token in (5, 6, 7)], held.rest()
        ([None, None, 5], [6, 7])
    """

    def __init__(self, count: int) -> None:
        self._count, self._tokens = count, deque[int]()

    def add(self, token: int) -> int | None:
        """Return the token that need not wait any more, or None."""
        self._tokens.append(token)
        return self._tokens.popleft() if len(self._tokens) > self._count else None

    def rest(self) -> list[int]:
        """Return those that wait still; they may be shown when the answer has ended by itself."""
        found = list(self._tokens)
        self._tokens.clear()
        return found
