"""Blocks and pools of the caching allocator: runs of addresses, cut and merged, and the free ones of a size class.

Addresses are numbers; what is asked of the driver, and when, is the business of `featherweight.memory.allocator`.
"""

from bisect import bisect_left, insort
from collections.abc import Iterator


class Block:
    """A run of addresses inside one segment: in use, cached, or (in an expandable segment) not backed by memory."""

    __slots__ = ("pool", "address", "size_bytes", "is_allocated", "is_mapped", "previous", "next", "freed_at")

    def __init__(self, pool: "Pool", address: int, size_bytes: int) -> None:
        self.pool = pool
        self.address = address
        self.size_bytes = size_bytes
        self.is_allocated = False
        self.is_mapped = True
        self.previous: Block | None = None
        self.next: Block | None = None
        self.freed_at = 0

    @property
    def is_whole_segment(self) -> bool:
        """Whether it has no neighbours."""
        return self.previous is None and self.next is None

    @property
    def expandable_bytes(self) -> int:
        """Bytes that the block can grow to by mapping what lies behind it."""
        following = self.next
        return self.size_bytes + (following.size_bytes if following is not None and not following.is_mapped else 0)

    def cut(self, size_bytes: int) -> "Block":
        """Keep the first `size_bytes` and return the rest as a free block behind."""
        rest = Block(self.pool, self.address + size_bytes, self.size_bytes - size_bytes)
        rest.is_mapped = self.is_mapped
        rest.previous, rest.next = self, self.next
        if rest.next is not None:
            rest.next.previous = rest
        self.next = rest
        self.size_bytes = size_bytes
        return rest

    def absorb(self, neighbour: "Block") -> None:
        """Take a neighbour's addresses over."""
        self.size_bytes += neighbour.size_bytes
        if neighbour is self.previous:
            self.address = neighbour.address
            self.previous = neighbour.previous
            if self.previous is not None:
                self.previous.next = self
        else:
            self.next = neighbour.next
            if self.next is not None:
                self.next.previous = self


class Pool:
    """The free blocks of one size class: cached ones by size and address, unmapped ones by address."""

    def __init__(self, *, page_bytes: int, is_small: bool) -> None:
        self.page_bytes = page_bytes
        self.is_small = is_small
        self.searches = 0  # the clock of the garbage collection
        self.mapped_bytes = 0  # of the expandable segment
        self._by_size: list[tuple[int, int]] = []
        self._unmapped: list[int] = []
        self._blocks: dict[int, Block] = {}  # free ones, by address

    def insert(self, block: Block) -> None:
        """Put a free block in as it is."""
        self._blocks[block.address] = block
        if block.is_mapped:
            block.freed_at = self.searches
            insort(self._by_size, (block.size_bytes, block.address))
        else:
            insort(self._unmapped, block.address)

    def add(self, block: Block) -> None:
        """Merge a free block with free neighbours of its kind, then put it in."""
        for neighbour in (block.previous, block.next):
            if neighbour is not None and not neighbour.is_allocated and neighbour.is_mapped == block.is_mapped:
                self.remove(neighbour)
                block.absorb(neighbour)
        self.insert(block)

    def remove(self, block: Block) -> None:
        """Take a free block out."""
        del self._blocks[block.address]
        if block.is_mapped:
            del self._by_size[bisect_left(self._by_size, (block.size_bytes, block.address))]
        else:
            del self._unmapped[bisect_left(self._unmapped, block.address)]

    def best_fit(self, size_bytes: int, *, expandable: bool) -> Block | None:
        """Return the smallest block that is large enough, or None.

        In an expandable segment a block counts with what it can grow to, so that the end of the segment stays free for
        large requests as long as a closed gap will do.
        """
        position = bisect_left(self._by_size, (size_bytes, -1))
        if position == len(self._by_size):
            return None
        block = self._at(position)
        while expandable and position + 1 < len(self._by_size):
            following = self._at(position + 1)
            if following.expandable_bytes >= block.expandable_bytes:
                break
            block, position = following, position + 1
        return block

    def first_of_size(self, size_bytes: int) -> Block | None:
        """Return the smallest cached block of at least this size, or None."""
        position = bisect_left(self._by_size, (size_bytes, -1))
        return None if position == len(self._by_size) else self._at(position)

    def largest(self) -> Block | None:
        """Return the largest cached block, or None."""
        return self._at(-1) if self._by_size else None

    def first_expandable(self, size_bytes: int) -> Block:
        """Return the first block from which on free and unmapped memory of this size lies in one piece."""
        for address in self._unmapped:
            block = self._blocks[address]
            if block.previous is not None and not block.previous.is_allocated:
                block = block.previous
            available_bytes, current = 0, block
            while available_bytes < size_bytes and not current.is_allocated:
                available_bytes += current.size_bytes
                if current.next is None:
                    break
                current = current.next
            if available_bytes >= size_bytes:
                return block
        raise AssertionError("an expandable segment has no end")

    def free_blocks(self) -> Iterator[Block]:
        """Return the cached blocks, smallest first."""
        return (self._blocks[address] for _, address in self._by_size)

    def whole_segments(self) -> list[Block]:
        """Return the cached blocks that are whole segments, smallest first."""
        return [block for block in self.free_blocks() if block.is_whole_segment]

    def _at(self, position: int) -> Block:
        return self._blocks[self._by_size[position][1]]
