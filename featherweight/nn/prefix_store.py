"""What one layer keeps of the chunks of a sequence: keys, values, sums of their gradients, and results of attention.

Shapes: B rows, H heads, K heads of keys and values, N tokens of a chunk, h head dimension.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from featherweight.errors import ShapeError
from featherweight.nn.offload import to_device, to_host


class KeyValueStore:
    """Keys and values of the chunks of one sequence in one layer, and the sums of their gradients.

    Args:
        bounds: first position of each chunk and the one behind its last.
        sum_dtype: of the sums; None takes float32, or float64 for keys in float64.
    """

    def __init__(self, bounds: Sequence[tuple[int, int]], sum_dtype: torch.dtype | None = None) -> None:
        self.bounds, self.sum_dtype = list(bounds), sum_dtype
        self._pairs: dict[int, tuple[Tensor, Tensor]] = {}
        self._sums: dict[int, tuple[Tensor, Tensor]] = {}

    def __len__(self) -> int:
        return len(self._pairs)

    def put(self, chunk: int, key: Tensor, value: Tensor) -> None:
        """Keep (B, K, N, h) keys and values of a chunk."""
        self._pairs[chunk] = (key.detach(), value.detach())

    def pair(self, chunk: int) -> tuple[Tensor, Tensor]:
        """Return the keys and values of a chunk.

        Raises:
            ShapeError: if they are not there.
        """
        if chunk not in self._pairs:
            raise ShapeError(
                f"streamed attention: chunk={chunk} has no keys; expected those of chunks {sorted(self._pairs)}. Run "
                "the chunks from first to last before one that follows them."
            )
        return self._pairs[chunk]

    def add(self, chunk: int, key_gradient: Tensor, value_gradient: Tensor) -> None:
        """Add gradients to the sums of a chunk."""
        if chunk not in self._sums:
            dtype = self.sum_dtype or wide_dtype(key_gradient.dtype)
            # Copies: a first gradient may be a view that somebody else writes to.
            self._sums[chunk] = (key_gradient.to(dtype, copy=True), value_gradient.to(dtype, copy=True))
            return
        key_sum, value_sum = self._sums[chunk]
        key_sum.add_(key_gradient)
        value_sum.add_(value_gradient)

    def take(self, chunk: int) -> tuple[Tensor, Tensor] | None:
        """Hand out the sums of a chunk, and free its keys and values; None if nothing was added."""
        self._pairs.pop(chunk, None)
        return self._sums.pop(chunk, None)

    def clear(self) -> None:
        """Free all."""
        self._pairs.clear()
        self._sums.clear()


class AttentionResults:
    """What attention has made of each chunk in one layer, so that a repetition of the layer need not make it again.

    Args:
        on_host: whether it waits in host memory.

    Example:
        >>> results = AttentionResults(on_host=False)
        >>> results.keep(0, torch.ones(2), torch.zeros(2))
        >>> results.of(0, torch.device("cpu"))
        (tensor([1., 1.]), tensor([0., 0.]))
        >>> results.drop(0)
        >>> results.of(0, torch.device("cpu")) is None
        True
    """

    def __init__(self, on_host: bool) -> None:
        self.on_host = on_host
        self._kept: dict[int, tuple[Tensor, Tensor]] = {}

    def keep(self, chunk: int, output: Tensor, logsumexp: Tensor) -> None:
        """Keep output and log-sum-exp of a chunk."""
        kept = (output.detach(), logsumexp)
        self._kept[chunk] = (to_host(kept[0]), to_host(kept[1])) if self.on_host else kept

    def of(self, chunk: int, device: torch.device) -> tuple[Tensor, Tensor] | None:
        """Return both on a device; None for a chunk that has not been there."""
        kept = self._kept.get(chunk)
        if kept is None or not self.on_host:
            return kept
        return to_device(kept[0], device), to_device(kept[1], device)

    def drop(self, chunk: int) -> None:
        """Free what a chunk has left, if anything."""
        self._kept.pop(chunk, None)

    def clear(self) -> None:
        """Free all."""
        self._kept.clear()


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return what sums over tensors of a dtype are taken in."""
    return torch.float64 if dtype == torch.float64 else torch.float32
