"""Which rows stand in which micro-batch: shares of processes, an order of its own in every epoch, a place to resume."""

import itertools
import math
from collections.abc import Iterable, Iterator

import numpy as np

from featherweight.errors import ConfigError


def micro_batch_numbers(
    *, micro_batch_size: int, process_rank: int, world_size: int, start: int, where: str
) -> Iterator[int]:
    """Return the numbers of the micro-batches of one process, without end; processes take turns.

    Args:
        micro_batch_size: is checked alone.
        process_rank: which share; 0 <= process_rank < world_size.
        world_size: number of shares.
        start: micro-batches of this share to skip; nothing is computed for them.
        where: opens the message of an error.
    Raises:
        ConfigError: if a number is out of range.
    Example:
        >>> numbers = micro_batch_numbers(micro_batch_size=4, process_rank=1, world_size=2, start=1, where="task")
        >>> next(numbers), next(numbers)
        (3, 5)
    """
    for name, value, low, high in (
        ("micro_batch_size", micro_batch_size, 1, math.inf),
        ("world_size", world_size, 1, math.inf),
        ("process_rank", process_rank, 0, world_size - 1),
        ("start", start, 0, math.inf),
    ):
        if not low <= value <= high:
            raise ConfigError(
                f"{where}: {name}={value} is out of range; expected {low} <= {name} <= {high}. Correct it."
            )
    return itertools.count(process_rank + start * world_size, world_size)


def shuffled_rows(numbers: Iterable[int], *, micro_batch_size: int, row_count: int, seed: int) -> Iterator[list[int]]:
    """Yield the rows of each micro-batch; an epoch visits each row once, and a micro-batch may span two epochs.

    Args:
        numbers: of the micro-batches, from `micro_batch_numbers`.
        micro_batch_size: rows of each.
        row_count: rows of an epoch.
        seed: the order follows from (seed, epoch); neighbouring ones have unrelated orders.
    Cost: the order of one epoch, or of those that a micro-batch spans, is kept.
    """
    orders: dict[int, np.ndarray] = {}
    for number in numbers:
        positions = np.arange(number * micro_batch_size, (number + 1) * micro_batch_size)
        epochs = np.unique(positions // row_count).tolist()
        orders = {epoch: orders.get(epoch, _order(row_count, seed, epoch)) for epoch in epochs}
        yield [int(orders[position // row_count][position % row_count]) for position in positions.tolist()]


def _order(row_count: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(row_count)
