"""From overlapping chunks of actions to one action: the ensemble over time of the chunks that are not over yet.

Source: ACT, arXiv 2304.13705: weights exp(-m i), the oldest chunk first.
"""

from collections import deque

import numpy as np
from numpy.typing import NDArray

DECAY = 0.01
"""m: how much less a newer chunk counts than the one before it."""


class ChunkEnsemble:
    """Collects chunks and gives the action of an instant; chunks are never used beyond their end.

    Args:
        fps: actions a second.
        decay: see `DECAY`.
        latest_alone: use the newest chunk alone.
    """

    def __init__(self, fps: float, decay: float = DECAY, latest_alone: bool = False) -> None:
        self._fps, self._decay, self._latest_alone = fps, decay, latest_alone
        self._chunks: deque[tuple[float, NDArray[np.float64]]] = deque()

    def clear(self) -> None:
        """Forget all chunks: what they were made for is over."""
        self._chunks.clear()

    def put(self, time_s: float, chunk: NDArray[np.float64]) -> None:
        """Take a (K, 6) chunk that was predicted from the state of an instant; its first action is for that instant."""
        if self._latest_alone:
            self._chunks.clear()
        self._chunks.append((time_s, chunk))

    def at(self, time_s: float) -> tuple[float, ...] | None:
        """Return the (6,) action of an instant; None if every chunk is over."""
        total, weights = np.zeros(0), 0.0
        while self._chunks and self._index(self._chunks[0], time_s) >= len(self._chunks[0][1]):
            self._chunks.popleft()
        for i, (start_s, chunk) in enumerate(self._chunks):
            index = self._index((start_s, chunk), time_s)
            if 0 <= index < len(chunk):
                weight = float(np.exp(-self._decay * i))
                total = weight * chunk[index] + (total if weights else 0.0)
                weights += weight
        return tuple(float(value) for value in total / weights) if weights else None

    def _index(self, entry: tuple[float, NDArray[np.float64]], time_s: float) -> int:
        # A time that is a whole number of steps belongs to the later action, whatever its rounding.
        return int((time_s - entry[0]) * self._fps + 1e-6)
