"""The share of a held-out split that each process of a run evaluates, and the sums over all of them.

Metrics are made of sums: of losses, of items, of counts. So every process computes those of its micro-batches, and the
sums of all are the numbers of one process that has evaluated the whole split.
"""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

    from featherweight.distributed.world import World

Item = TypeVar("Item")


class Share:
    """What a process evaluates. Every process makes equally many passes, as shares of rows ask for.

    Args:
        world: processes of the run; None for one that has everything.
    """

    def __init__(self, world: "World | None" = None) -> None:
        self._world = world
        self._rank, self._size = (0, 1) if world is None else (world.rank, world.size)

    @property
    def processes(self) -> int:
        """How many processes share."""
        return self._size

    def of(self, items: Iterable[Item]) -> Iterator[tuple[Item, bool]]:
        """Yield the items of this process, and whether they count.

        A process that has none left while others have takes one of theirs, which does not count.

        Args:
            items: all of the split, in the same order on all processes.
        Example:
            >>> list(Share().of("abc"))
            [('a', True), ('b', True), ('c', True)]
        """
        left = iter(items)
        while turn := list(islice(left, self._size)):
            is_mine = self._rank < len(turn)
            yield turn[self._rank if is_mine else 0], is_mine

    def sums(self, *values: float) -> list[float]:
        """Return sums over the processes, the same bits on all; whole numbers up to 2^53 are exact."""
        return [float(value) for value in values] if self._world is None else self._world.sums(*values)

    def largest(self, value: float) -> float:
        """Return the largest value of all processes."""
        return value if self._world is None else max(self._world.gather(value))

    def sum(self, counts: "Tensor") -> "Tensor":
        """Return the sum over the processes of a tensor of counts on the CPU, in its own dtype and shape."""
        summed = counts.new_tensor(self.sums(*counts.reshape(-1).tolist()))
        return summed.reshape(counts.shape)
