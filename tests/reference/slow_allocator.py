"""The caching allocator by brute force: every question is answered by looking at all memory there is.

Two slow twins of `featherweight.memory.allocator.CachingAllocator`, one with a segment per request and one with
expandable segments. No neighbours are linked and no pool is sorted.
"""

MIB = 2**20
ENDLESS = 2**60
TOP = 2**47


class SegmentTwin:
    """Segments as lists of ``[size, identity or None]``, the oldest first; each lies below those before it."""

    def __init__(self, options, limit_bytes=None):
        self.options, self.limit_bytes = options, limit_bytes
        self.segments = []  # [address, is_small, blocks]
        self.lowest_address = TOP

    @property
    def reserved_bytes(self):
        return sum(size for _, _, blocks in self.segments for size, _ in blocks)

    def blocks(self):
        found = []
        for address, _, blocks in self.segments:
            for size, identity in blocks:
                found.append((address, size, identity is not None))
                address += size
        return sorted(found)

    def allocate(self, identity, size_bytes):
        size = self.options.round(size_bytes)
        place = self.best_fit(size)
        if place is None:
            place = self.new_segment(size)
            if place is None and self.release_oversize(size):
                place = self.new_segment(size)
            if place is None:
                self.empty_cache()
                place = self.new_segment(size)
            if place is None:
                return False
        segment, position = place
        _, is_small, blocks = segment
        rest = blocks[position][0] - size
        if rest >= 512 if is_small else rest > MIB and size < self.options.split_limit_bytes:
            blocks[position : position + 1] = [[size, identity], [rest, None]]
        else:
            blocks[position][1] = identity
        return True

    def free(self, identity):
        for _, _, blocks in self.segments:
            for block in blocks:
                if block[1] == identity:
                    block[1] = None
        for segment in self.segments:
            merged = []
            for size, owner in segment[2]:
                if owner is None and merged and merged[-1][1] is None:
                    merged[-1][0] += size
                else:
                    merged.append([size, owner])
            segment[2] = merged

    def empty_cache(self):
        self.segments = [one for one in self.segments if len(one[2]) > 1 or one[2][0][1] is not None]

    def cached(self, is_small):
        """All free blocks of a pool, as (size, address, segment, position), smallest first."""
        found = []
        for segment in self.segments:
            address = segment[0]
            for position, (size, identity) in enumerate(segment[2]):
                if identity is None and segment[1] == is_small:
                    found.append((size, address, segment, position))
                address += size
        return sorted(found, key=lambda one: one[:2])

    def best_fit(self, size):
        limit = self.options.split_limit_bytes
        for free, _, segment, position in self.cached(size <= MIB):
            if free >= size:
                too_large = free >= limit if size < limit else free >= size + self.options.unsplit_waste_bytes
                return None if too_large else (segment, position)
        return None

    def new_segment(self, size):
        if size <= MIB:
            total = 2 * MIB
        elif size < 10 * MIB:
            total = 20 * MIB
        else:
            total = (size + 2 * MIB - 1) // (2 * MIB) * (2 * MIB)
        if self.limit_bytes is not None and self.reserved_bytes + total > self.limit_bytes:
            return None
        self.lowest_address -= total
        self.segments.append([self.lowest_address, size <= MIB, [[total, None]]])
        return self.segments[-1], 0

    def release_oversize(self, size):
        if self.options.max_split_size_mb is None:
            return False
        limit = self.options.split_limit_bytes
        wanted = max(size, limit)
        oversize = [one for one in self.cached(size <= MIB) if one[0] >= limit]
        enough = [one for one in oversize if one[0] >= wanted]
        if enough:
            self.segments.remove(enough[0][2])
            return True
        released = 0
        for free, _, segment, _ in reversed(oversize):
            if released >= wanted:
                break
            self.segments.remove(segment)
            released += free
        return released >= wanted


class ExpandableTwin:
    """Two endless ranges of addresses, the set of mapped pages of each, and where the blocks in use lie."""

    def __init__(self, options, limit_bytes=None):
        self.options, self.limit_bytes = options, limit_bytes
        self.pools = [ExpandablePool(0, 2 * MIB), ExpandablePool(ENDLESS, 20 * MIB)]

    @property
    def reserved_bytes(self):
        return sum(len(pool.pages) * pool.page for pool in self.pools)

    def blocks(self):
        used = [(pool.base + start, size, True) for pool in self.pools for start, size in pool.used.values()]
        free = [(pool.base + start, size, False) for pool in self.pools for start, size in pool.free_runs()]
        return sorted(used + free)

    def allocate(self, identity, size_bytes):
        size = self.options.round(size_bytes)
        pool = self.pools[size > MIB]
        start = pool.best_fit(size)
        if start is None:
            start = self.expand(pool, size)
            if start is None:
                self.empty_cache()
                start = self.expand(pool, size)
            if start is None:
                return False
        pool.used[identity] = start, size
        return True

    def free(self, identity):
        for pool in self.pools:
            pool.used.pop(identity, None)

    def empty_cache(self):
        for pool in self.pools:
            for start, size in pool.free_runs():
                pool.pages -= {page for page in pool.pages if pool.inside(page, start, start + size)}

    def expand(self, pool, size):
        # PyTorch asks before it maps whether a whole segment would fit.
        whole = 2 * MIB if size <= MIB else 20 * MIB if size < 10 * MIB else -(-size // (2 * MIB)) * 2 * MIB
        if not self.fits(whole):
            return None
        start = pool.first_room(size)
        for run in pool.unmapped_pages(start, start + size):
            if not self.fits(len(run) * pool.page):
                return None
            pool.pages |= set(run)
        return start

    def fits(self, more):
        return self.limit_bytes is None or self.reserved_bytes + more <= self.limit_bytes


class ExpandablePool:
    def __init__(self, base, page):
        self.base, self.page = base, page
        self.pages = set()
        self.used = {}

    def inside(self, page, begin, end):
        return begin <= page * self.page and (page + 1) * self.page <= end

    def free_runs(self):
        """(start, size) of all mapped memory without an owner, by address."""
        cuts = sorted(
            {page * self.page for page in self.pages}
            | {(page + 1) * self.page for page in self.pages}
            | {start for start, _ in self.used.values()}
            | {start + size for start, size in self.used.values()}
        )
        runs = []
        for begin, end in zip(cuts, cuts[1:], strict=False):
            is_used = any(start <= begin < start + size for start, size in self.used.values())
            if begin // self.page not in self.pages or is_used:
                continue
            if runs and sum(runs[-1]) == begin:
                runs[-1] = runs[-1][0], end - runs[-1][0]
            else:
                runs.append((begin, end - begin))
        return runs

    def expandable_size(self, start, size):
        """Bytes from a free run on to the end of the unmapped memory that follows it directly."""
        end = start + size
        if end // self.page in self.pages:
            return size
        later = [page * self.page for page in self.pages if page * self.page > end]
        return min(later, default=ENDLESS) - start

    def best_fit(self, size):
        fitting = sorted((free, start) for start, free in self.free_runs() if free >= size)
        best = None
        for free, start in fitting:
            grown = self.expandable_size(start, free)
            if best is not None and grown >= best[0]:
                break
            best = grown, start
        return None if best is None else best[1]

    def first_room(self, size):
        """The lowest address, at or right before unmapped memory, from which on nobody owns `size` bytes."""
        last = max(self.pages, default=-1) + 1
        starts = [page for page in range(last + 1) if page not in self.pages and (page == 0 or page - 1 in self.pages)]
        for page in starts:
            begin = page * self.page
            start = next((run for run, free in self.free_runs() if run + free == begin), begin)
            if not any(start < owned + length and owned < start + size for owned, length in self.used.values()):
                return start
        raise AssertionError("the memory behind the last page is free")

    def unmapped_pages(self, begin, end):
        """Runs of pages between two addresses that are not mapped."""
        runs = []
        for page in range(begin // self.page, (end - 1) // self.page + 1):
            if page in self.pages:
                continue
            if runs and runs[-1][-1] == page - 1:
                runs[-1].append(page)
            else:
                runs.append([page])
        return runs
