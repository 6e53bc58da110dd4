"""A model of PyTorch's CUDA caching allocator: what a sequence of allocations takes from the driver.

Tensors ask the allocator, the allocator asks the driver for segments and cuts blocks from them; the peak of the
segments is what nvidia-smi shows on top of the CUDA context. Addresses are numbers and nothing is allocated.
One stream, no CUDA graphs, no private pools. The options stand in `featherweight.memory.allocator_options`, the replay
of a recorded snapshot in `featherweight.memory.snapshot`.

Source: c10/cuda/CUDACachingAllocator.cpp of github.com/pytorch/pytorch (facts read, no code taken). Differs from it: no
segment gets an address that was used before, and an expandable segment has no end. The driver chooses addresses, and of
two blocks of one size the allocator takes the lower one; here each segment lies below those before it, which explains
the recorded run in tests/memory/test_snapshot.py segment by segment, where rising addresses take 0.4 % too much.
"""

import dataclasses
from collections.abc import Hashable, Iterable

from featherweight.errors import ConfigError
from featherweight.memory.allocator_blocks import Block, Pool
from featherweight.memory.allocator_options import BLOCK_BYTES, MIB, AllocatorOptions

SMALL_REQUEST_BYTES = MIB
"""Largest request that the pool of small blocks serves."""
SMALL_SEGMENT_BYTES = 2 * MIB
"""Segment, or page of an expandable segment, of the pool of small blocks."""
LARGE_SEGMENT_BYTES = 20 * MIB
"""Segment for requests between 1 and 10 MiB, and page of an expandable segment of large blocks."""
OWN_SEGMENT_BYTES = 10 * MIB
"""Smallest request that gets a segment of its own, rounded up to `SMALL_SEGMENT_BYTES`."""

# Address space of an expandable segment: beyond any card, so that it never has to begin a second one.
_ENDLESS_BYTES = 1 << 60
TOP_ADDRESS = 1 << 47
"""Where the first segment ends, as the address space of a process does on x86-64; the next ones lie below."""


@dataclasses.dataclass(frozen=True)
class Replay:
    """What a sequence of allocations took."""

    requested_peak_bytes: int
    """Highest sum of what was asked for, before rounding."""
    allocated_peak_bytes: int
    """Highest sum of the blocks handed out, the figure of ``torch.cuda.max_memory_allocated``."""
    reserved_peak_bytes: int
    """Highest sum of the segments, the figure of ``torch.cuda.max_memory_reserved``."""
    fragmentation: float
    """Share of the reserved peak that the allocated peak does not explain, 0 to 1."""
    segments: int
    """Segments held at the end; an expandable segment counts as one."""
    retries: int
    """Times that cached segments went back to the driver because a new one did not fit under the limit."""
    out_of_memory_at: int | None
    """Position of the event that did not fit, after which the replay stopped; None if all fitted."""


def replay(
    events: Iterable[tuple[Hashable, int]],
    options: AllocatorOptions | None = None,
    *,
    limit_bytes: int | None = None,
) -> Replay:
    """Run a sequence of allocations and frees through a `CachingAllocator`.

    Args:
        events: pairs of an identity and a size in bytes, in order. A positive size allocates, a size of zero or less
            frees what the identity holds; zero for an unknown identity is an empty tensor, which takes no memory.
        options: settings of the allocator; default: PyTorch's defaults.
        limit_bytes: the most that the driver gives, as ``torch.cuda.set_per_process_memory_fraction`` sets it;
            None: no limit.
    Raises:
        ConfigError: if an identity is allocated twice or freed without being alive.
    Cost: O(log n) searches per event, and a list insertion in a pool of n free blocks.
    Example:
        >>> trace = [("a", 12 * MIB), ("b", 12 * MIB), ("a", -1), ("c", 13 * MIB)]
        >>> replay(trace).reserved_peak_bytes // MIB
        38
    """
    allocator = CachingAllocator(options, limit_bytes=limit_bytes)
    for position, (identity, size_bytes) in enumerate(events):
        if size_bytes > 0:
            if not allocator.allocate(identity, size_bytes):
                return allocator.result(out_of_memory_at=position)
        elif size_bytes < 0 or identity in allocator:
            allocator.free(identity)
    return allocator.result()


class CachingAllocator:
    """The allocator itself, for use step by step.

    Example:
        >>> allocator = CachingAllocator()
        >>> allocator.allocate("weight", 3 * MIB)
        True
        >>> allocator.allocated_bytes // MIB, allocator.reserved_bytes // MIB
        (3, 20)
        >>> allocator.free("weight")
        >>> allocator.allocated_bytes, allocator.reserved_bytes // MIB
        (0, 20)
    """

    def __init__(self, options: AllocatorOptions | None = None, *, limit_bytes: int | None = None) -> None:
        if limit_bytes is not None and limit_bytes <= 0:
            raise ConfigError(
                f"CachingAllocator: limit_bytes={limit_bytes} is no amount of memory; expected at least 1 or None. "
                "Give the bytes of the card, or None for no limit."
            )
        self.options = options or AllocatorOptions()
        self.limit_bytes = limit_bytes
        self.requested_bytes = self.requested_peak_bytes = 0
        self.allocated_bytes = self.allocated_peak_bytes = 0
        self.reserved_bytes = self.reserved_peak_bytes = 0
        self.segments = 0
        self.retries = 0
        self._live: dict[Hashable, tuple[Block, int]] = {}
        self._lowest_address = TOP_ADDRESS
        self._small = Pool(page_bytes=SMALL_SEGMENT_BYTES, is_small=True)
        self._large = Pool(page_bytes=LARGE_SEGMENT_BYTES, is_small=False)
        if self.options.expandable_segments:
            for number, pool in enumerate((self._small, self._large)):
                _add_endless_segment(pool, number * _ENDLESS_BYTES)

    def __contains__(self, identity: Hashable) -> bool:
        return identity in self._live

    def allocate(self, identity: Hashable, size_bytes: int) -> bool:
        """Allocate a block; return False if it does not fit under the limit, even after the cache was emptied.

        Args:
            identity: what to call the block in `free`.
            size_bytes: bytes asked for; an empty tensor (0) takes no memory and must not be freed.
        Raises:
            ConfigError: if the identity is alive already or the size is negative.
        """
        if size_bytes <= 0:
            if size_bytes == 0:
                return True
            raise ConfigError(
                f"CachingAllocator: size_bytes={size_bytes} of {identity!r} is negative; expected at least 0. "
                "Call free to give memory back."
            )
        if identity in self._live:
            raise ConfigError(
                f"CachingAllocator: identity={identity!r} is alive already; expected a new one. "
                "Free it first, or give every allocation its own identity."
            )
        rounded_bytes = self.options.round(size_bytes)
        pool = self._small if rounded_bytes <= SMALL_REQUEST_BYTES else self._large
        block = self._cached_block(pool, rounded_bytes) or self._new_block(pool, rounded_bytes)
        if block is None:
            return False
        self._hand_out(block, rounded_bytes)
        self._live[identity] = block, size_bytes
        self.requested_bytes += size_bytes
        self.allocated_bytes += block.size_bytes
        self.requested_peak_bytes = max(self.requested_peak_bytes, self.requested_bytes)
        self.allocated_peak_bytes = max(self.allocated_peak_bytes, self.allocated_bytes)
        return True

    def free(self, identity: Hashable) -> None:
        """Give a block back to the cache, merged with its free neighbours.

        Raises:
            ConfigError: if the identity is not alive.
        """
        if identity not in self._live:
            raise ConfigError(
                f"CachingAllocator: identity={identity!r} is not alive; expected one that was allocated and not freed. "
                "Check the order of the events."
            )
        block, size_bytes = self._live.pop(identity)
        self.requested_bytes -= size_bytes
        self.allocated_bytes -= block.size_bytes
        block.is_allocated = False
        block.pool.add(block)

    def empty_cache(self) -> None:
        """Give all segments and pages without a block in use back to the driver, as ``torch.cuda.empty_cache`` does."""
        for pool in (self._large, self._small):
            for block in list(pool.free_blocks()):
                if self.options.expandable_segments:
                    self._unmap(block)
                elif block.is_whole_segment:
                    self._release(block)

    def blocks(self) -> list[tuple[int, int, bool]]:
        """Return address, size in bytes and whether in use of every block that is backed by memory, by address."""
        in_use = [(block.address, block.size_bytes, True) for block, _ in self._live.values()]
        cached = [
            (block.address, block.size_bytes, False)
            for pool in (self._small, self._large)
            for block in pool.free_blocks()
        ]
        return sorted(in_use + cached)

    def result(self, *, out_of_memory_at: int | None = None) -> Replay:
        """Return the figures so far."""
        reserved_bytes = self.reserved_peak_bytes
        return Replay(
            requested_peak_bytes=self.requested_peak_bytes,
            allocated_peak_bytes=self.allocated_peak_bytes,
            reserved_peak_bytes=reserved_bytes,
            fragmentation=1 - self.allocated_peak_bytes / reserved_bytes if reserved_bytes else 0.0,
            segments=self.segments,
            retries=self.retries,
            out_of_memory_at=out_of_memory_at,
        )

    def _cached_block(self, pool: Pool, size_bytes: int) -> Block | None:
        """Take the best fit out of the pool: the smallest block that is large enough, then the lowest address."""
        pool.searches += 1
        block = pool.best_fit(size_bytes, expandable=self.options.expandable_segments)
        if block is None:
            return None
        limit = self.options.split_limit_bytes
        # Blocks from the limit on are kept whole for requests of about their size.
        too_large_for_small = size_bytes < limit <= block.size_bytes
        too_large = size_bytes >= limit and block.size_bytes >= size_bytes + self.options.unsplit_waste_bytes
        if too_large_for_small or too_large:
            return None
        pool.remove(block)
        return block

    def _new_block(self, pool: Pool, size_bytes: int) -> Block | None:
        """Ask the driver; if it has too little, give cached memory back and ask again."""
        self._collect_garbage()
        block = self._from_driver(pool, size_bytes)
        if block is None and self._release_oversize(pool, size_bytes):
            block = self._from_driver(pool, size_bytes)
        if block is None:
            self.empty_cache()
            self.retries += 1
            block = self._from_driver(pool, size_bytes)
        return block

    def _from_driver(self, pool: Pool, size_bytes: int) -> Block | None:
        segment_bytes = _segment_bytes(size_bytes)
        if not self._fits(segment_bytes):
            return None
        if self.options.expandable_segments:
            return self._expand(pool, size_bytes)
        self._lowest_address -= segment_bytes
        block = Block(pool, self._lowest_address, segment_bytes)
        self.segments += 1
        self._reserve(segment_bytes)
        return block

    def _hand_out(self, block: Block, size_bytes: int) -> None:
        """Mark a block as used and give what it has too much back to its pool, where the rules allow a split."""
        block.is_allocated = True
        remainder_bytes = block.size_bytes - size_bytes
        if block.pool.is_small or self.options.expandable_segments:
            is_split = remainder_bytes >= BLOCK_BYTES
        else:
            is_split = size_bytes < self.options.split_limit_bytes and remainder_bytes > SMALL_REQUEST_BYTES
        if is_split:
            block.pool.insert(block.cut(size_bytes))

    def _fits(self, more_bytes: int) -> bool:
        return self.limit_bytes is None or self.reserved_bytes + more_bytes <= self.limit_bytes

    def _reserve(self, size_bytes: int) -> None:
        self.reserved_bytes += size_bytes
        self.reserved_peak_bytes = max(self.reserved_peak_bytes, self.reserved_bytes)

    def _release(self, block: Block) -> None:
        block.pool.remove(block)
        self.segments -= 1
        self.reserved_bytes -= block.size_bytes

    def _release_oversize(self, pool: Pool, size_bytes: int) -> bool:
        """Release blocks that may not be split, largest first, until one segment of this size would fit."""
        limit = self.options.split_limit_bytes
        if self.options.max_split_size_mb is None or self.options.expandable_segments:
            return False
        wanted_bytes = max(size_bytes, limit)
        block = pool.first_of_size(wanted_bytes)
        if block is not None:
            self._release(block)
            return True
        released_bytes = 0
        while released_bytes < wanted_bytes and (block := pool.largest()) is not None and block.size_bytes >= limit:
            self._release(block)
            released_bytes += block.size_bytes
        return released_bytes >= wanted_bytes

    def _collect_garbage(self) -> None:
        """Release large cached segments of more than average age while more than the threshold is reserved."""
        if self.options.garbage_collection_threshold == 0 or self.limit_bytes is None:
            return
        excess_bytes = self.reserved_bytes - int(self.options.garbage_collection_threshold * self.limit_bytes)
        candidates = [] if self.options.expandable_segments else self._large.whole_segments()
        while excess_bytes > 0 and candidates:
            ages = {block: self._large.searches - block.freed_at for block in candidates}
            average_age = sum(ages.values()) / len(ages)
            for block in [block for block in candidates if ages[block] >= average_age]:
                excess_bytes -= block.size_bytes
                self._release(block)
                candidates.remove(block)

    def _expand(self, pool: Pool, size_bytes: int) -> Block | None:
        """Map pages behind free memory until `size_bytes` lie in one piece, at the lowest address where that works."""
        block = pool.first_expandable(size_bytes)
        if not block.is_mapped and not self._map(block, min(block.size_bytes, size_bytes)):
            return None
        while block.size_bytes < size_bytes:
            following = block.next
            assert following is not None  # the end of the segment is unmapped and endless
            if not self._map(following, min(size_bytes - block.size_bytes, following.size_bytes)):
                return None
            block = following  # it took the memory before it in
        pool.remove(block)
        return block

    def _map(self, block: Block, size_bytes: int) -> bool:
        """Back the front of an unmapped block by pages and merge it with its free neighbours."""
        mapped_bytes = -(-size_bytes // block.pool.page_bytes) * block.pool.page_bytes
        if not self._fits(mapped_bytes):
            return False
        self.segments += not block.pool.mapped_bytes
        block.pool.remove(block)
        if mapped_bytes < block.size_bytes:
            block.pool.insert(block.cut(mapped_bytes))
        block.is_mapped = True
        block.pool.add(block)
        block.pool.mapped_bytes += mapped_bytes
        self._reserve(mapped_bytes)
        return True

    def _unmap(self, block: Block) -> None:
        """Give the pages that lie wholly inside a free block back to the driver."""
        pool = block.pool
        # Segments begin at a multiple of every page size, for the pages of a segment are counted from its begin.
        offset = block.address % _ENDLESS_BYTES
        begin = -(-offset // pool.page_bytes) * pool.page_bytes
        end = (offset + block.size_bytes) // pool.page_bytes * pool.page_bytes
        if begin >= end:
            return
        pool.remove(block)
        if end < offset + block.size_bytes:
            pool.insert(block.cut(end - offset))
        middle = block
        if begin > offset:
            middle = block.cut(begin - offset)
            pool.insert(block)
        unmapped_bytes = middle.size_bytes
        middle.is_mapped = False
        pool.add(middle)
        pool.mapped_bytes -= unmapped_bytes
        self.segments -= not pool.mapped_bytes
        self.reserved_bytes -= unmapped_bytes


def _segment_bytes(size_bytes: int) -> int:
    """Return the size of the segment that a rounded request takes from the driver."""
    if size_bytes <= SMALL_REQUEST_BYTES:
        return SMALL_SEGMENT_BYTES
    if size_bytes < OWN_SEGMENT_BYTES:
        return LARGE_SEGMENT_BYTES
    return -(-size_bytes // SMALL_SEGMENT_BYTES) * SMALL_SEGMENT_BYTES


def _add_endless_segment(pool: Pool, address: int) -> None:
    block = Block(pool, address, _ENDLESS_BYTES)
    block.is_mapped = False
    pool.insert(block)
