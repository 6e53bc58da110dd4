import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from slow_allocator import ExpandableTwin, SegmentTwin

from featherweight.errors import ConfigError
from featherweight.memory.allocator import TOP_ADDRESS, CachingAllocator, replay
from featherweight.memory.allocator_options import AllocatorOptions

KIB, MIB = 2**10, 2**20

EXPANDABLE = AllocatorOptions(expandable_segments=True)


def layout(allocator):
    """Blocks as (where they begin below the top, size, in use) in MiB, the youngest segment first."""
    return [((TOP_ADDRESS - address) / MIB, size / MIB, in_use) for address, size, in_use in allocator.blocks()]


def filled(sizes_mib, options=None, **limits):
    """An allocator with one block per size, named 0, 1, ..."""
    allocator = CachingAllocator(options, **limits)
    for identity, size_mib in enumerate(sizes_mib):
        assert allocator.allocate(identity, int(size_mib * MIB))
    return allocator


class TestSegments:
    def test_a_hole_of_12_mib_does_not_serve_13_mib(self):
        events = [*((name, 12 * MIB) for name in "abcd"), ("b", -1), ("e", 13 * MIB)]
        result = replay(events)
        assert result.reserved_peak_bytes == 62 * MIB  # 4 segments of 12, and one of 14
        # 13 of 14 MiB: what is left is no more than 1 MiB and stays with the block.
        assert result.allocated_peak_bytes == 50 * MIB
        assert result.requested_peak_bytes == 49 * MIB
        assert result.fragmentation == 1 - 50 / 62
        assert (result.segments, result.retries, result.out_of_memory_at) == (5, 0, None)

    @pytest.mark.parametrize(
        ("size_bytes", "segment_bytes"),
        [
            (1, 2 * MIB),
            (MIB, 2 * MIB),
            (MIB + 1, 20 * MIB),
            (10 * MIB - 512, 20 * MIB),
            (10 * MIB, 10 * MIB),
            (10 * MIB + 1, 12 * MIB),
            (2**31 + 1, 2**31 + 2 * MIB),
        ],
    )
    def test_segment_sizes_follow_the_request(self, size_bytes, segment_bytes):
        assert replay([(0, size_bytes)]).reserved_peak_bytes == segment_bytes

    def test_small_requests_share_a_segment_in_steps_of_512_bytes(self):
        allocator = CachingAllocator()
        for identity, size_bytes in enumerate((1, 512, 513, MIB)):
            allocator.allocate(identity, size_bytes)
        base = TOP_ADDRESS - 2 * MIB
        assert [(address - base, size_bytes) for address, size_bytes, _ in allocator.blocks()] == [
            (0, 512),
            (512, 512),
            (1024, 1024),
            (2048, MIB),
            (2048 + MIB, MIB - 2048),
        ]
        assert allocator.reserved_bytes == 2 * MIB

    def test_a_large_block_is_split_only_if_more_than_1_mib_is_left(self):
        exactly = filled([12])
        exactly.free(0)
        exactly.allocate("whole", 11 * MIB)
        assert layout(exactly) == [(12, 12, True)]

        more = filled([14])
        more.free(0)
        more.allocate("part", 12 * MIB + 512)
        assert len(more.blocks()) == 2
        assert more.allocated_bytes == 12 * MIB + 512

    def test_free_neighbours_grow_together_inside_a_segment_and_never_across(self):
        allocator = filled([5, 5, 5, 5, 12])
        assert allocator.reserved_bytes == 32 * MIB
        for identity in (0, 2, 1):
            allocator.free(identity)
        assert layout(allocator) == [(32, 12, True), (20, 15, False), (5, 5, True)]
        allocator.free(3)
        allocator.free(4)
        assert layout(allocator) == [(32, 12, False), (20, 20, False)]

    def test_the_smallest_hole_that_is_large_enough_is_taken_then_that_of_the_youngest_segment(self):
        allocator = filled([30, 14, 20, 14])
        for identity in range(4):
            allocator.free(identity)
        allocator.allocate("first", 13 * MIB)
        allocator.allocate("second", 13 * MIB)
        allocator.allocate("third", 13 * MIB)
        in_use = [below for below, _, used in layout(allocator) if used]
        assert in_use == [78, 64, 44]  # 14, 20 and 14 MiB; that of 30 MiB stays free
        again = filled([14, 14])
        again.free(0)
        again.free(1)
        again.allocate("one", 13 * MIB)
        assert layout(again) == [(28, 14, True), (14, 14, False)]
        assert allocator.reserved_bytes == 78 * MIB

    def test_pools_do_not_help_each_other(self):
        allocator = filled([12])
        allocator.free(0)
        allocator.allocate("small", KIB)
        assert allocator.reserved_bytes == 14 * MIB


class TestLimit:
    def test_cached_segments_go_back_when_a_new_one_does_not_fit(self):
        allocator = filled([12, 12, 12], limit_bytes=40 * MIB)
        allocator.free(0)
        allocator.free(2)
        assert allocator.allocate("large", 24 * MIB)
        assert layout(allocator) == [(60, 24, True), (24, 12, True)]
        assert allocator.retries == 1

    def test_a_segment_with_a_block_in_use_is_kept(self):
        allocator = filled([4, 4], limit_bytes=40 * MIB)
        allocator.free(0)
        assert not allocator.allocate("large", 24 * MIB)
        assert allocator.reserved_bytes == 20 * MIB

    def test_replay_stops_where_memory_runs_out(self):
        result = replay([(0, 12 * MIB), (1, 12 * MIB), (2, 12 * MIB)], limit_bytes=24 * MIB)
        assert result.out_of_memory_at == 2
        assert result.allocated_peak_bytes == result.reserved_peak_bytes == 24 * MIB

    def test_after_running_out_the_allocator_goes_on(self):
        allocator = filled([12], limit_bytes=20 * MIB)
        assert not allocator.allocate("too much", 12 * MIB)
        allocator.free(0)
        assert allocator.allocate("too much", 12 * MIB)

    def test_empty_cache_gives_whole_segments_back(self):
        allocator = filled([12, 5, 5])
        allocator.free(0)
        allocator.free(1)
        allocator.empty_cache()
        assert layout(allocator) == [(32, 5, False), (27, 5, True), (22, 10, False)]
        assert (allocator.reserved_bytes, allocator.segments) == (20 * MIB, 1)


class TestOptions:
    def test_blocks_above_the_split_limit_stay_whole(self):
        options = AllocatorOptions(max_split_size_mb=32)
        allocator = filled([64], options)
        allocator.free(0)
        allocator.allocate("small", 12 * MIB)  # may not break the large block
        assert allocator.reserved_bytes == 76 * MIB
        allocator.allocate("large", 50 * MIB)  # takes it whole, 14 MiB more than asked for
        assert (allocator.reserved_bytes, allocator.allocated_bytes) == (76 * MIB, 76 * MIB)

    def test_a_much_larger_unsplit_block_does_not_serve(self):
        allocator = filled([64], AllocatorOptions(max_split_size_mb=32))
        allocator.free(0)
        allocator.allocate("large", 44 * MIB)  # 20 MiB of waste are too much
        assert allocator.reserved_bytes == 108 * MIB

    def test_unsplit_blocks_are_released_first_and_no_more_than_needed(self):
        options = AllocatorOptions(max_split_size_mb=32)
        allocator = filled([40, 40, 12], options, limit_bytes=100 * MIB)
        for identity in range(3):
            allocator.free(identity)
        assert allocator.allocate("large", 64 * MIB)
        assert layout(allocator) == [(156, 64, True), (92, 12, False)]
        assert allocator.retries == 0

    @pytest.mark.parametrize(
        ("threshold", "kept"),
        [(0.75, [(40, 20, False)]), (0.5, [])],  # 1 and 26 MiB too many: the older segment is enough, or both go
    )
    def test_garbage_collection_releases_the_oldest_segments_above_the_threshold(self, threshold, kept):
        allocator = filled(
            [20, 20, 12], AllocatorOptions(garbage_collection_threshold=threshold), limit_bytes=100 * MIB
        )
        allocator.free(0)
        allocator.allocate("no hole is large enough", 24 * MIB)
        allocator.free(1)
        allocator.allocate("none again", 30 * MIB)
        assert [block for block in layout(allocator) if not block[2]] == kept
        assert allocator.reserved_bytes == (66 + 20 * len(kept)) * MIB

    def test_garbage_collection_needs_a_limit(self):
        allocator = filled([20], AllocatorOptions(garbage_collection_threshold=0.01))
        allocator.free(0)
        allocator.allocate("new", 30 * MIB)
        assert allocator.reserved_bytes == 50 * MIB


class TestExpandableSegments:
    def test_pages_are_mapped_behind_the_last_block(self):
        allocator = filled([12, 12, 12], EXPANDABLE)
        assert allocator.reserved_bytes == 40 * MIB  # two pages of 20 MiB hold 36 MiB
        assert allocator.segments == 1
        allocator.allocate("small", KIB)
        assert (allocator.reserved_bytes, allocator.segments) == (42 * MIB, 2)

    def test_the_hole_of_the_hand_trace_costs_one_page(self):
        events = [*((name, 12 * MIB) for name in "abcd"), ("b", -1), ("e", 13 * MIB)]
        # 48 MiB lie in three pages; 12 MiB are free behind them, one more page makes room for 13.
        assert replay(events, EXPANDABLE).reserved_peak_bytes == 80 * MIB

    def test_a_closed_gap_is_preferred_to_the_open_end(self):
        allocator = filled([15, 5, 10], EXPANDABLE)
        allocator.free(0)
        # 10 MiB are free at the end, a better fit by size; but the end can grow.
        allocator.allocate("new", 8 * MIB)
        base = allocator.blocks()[0][0]
        assert [(block[0] - base) / MIB for block in allocator.blocks() if block[2]] == [0, 15, 20]

    def test_free_pages_are_unmapped_and_mapped_elsewhere_when_memory_runs_out(self):
        allocator = filled([40, 40, 20], EXPANDABLE, limit_bytes=110 * MIB)
        allocator.free(1)
        assert allocator.allocate("large", 50 * MIB) is False
        assert allocator.retries == 1
        assert allocator.reserved_bytes == 60 * MIB
        assert allocator.allocate("fits the gap", 40 * MIB)
        assert allocator.reserved_bytes == 100 * MIB

    def test_only_whole_pages_go_back(self):
        allocator = filled([30, 15, 15], EXPANDABLE)
        allocator.free(1)
        allocator.empty_cache()
        assert allocator.reserved_bytes == 60 * MIB  # 30 to 45 MiB holds no page of 20 to 40 or 40 to 60 wholly
        allocator.free(0)
        allocator.empty_cache()
        assert allocator.reserved_bytes == 20 * MIB


class TestIdentities:
    def test_empty_tensors_take_nothing(self):
        result = replay([("empty", 0), ("full", 512), ("empty", 0), ("full", 0)])
        assert result.allocated_peak_bytes == 512

    def test_a_size_of_zero_or_less_frees(self):
        assert replay([(0, MIB), (0, 0), (1, MIB), (1, -MIB), (2, MIB)]).allocated_peak_bytes == MIB

    def test_wrong_orders_are_named(self):
        with pytest.raises(ConfigError, match="identity='a' is alive already"):
            replay([("a", 1), ("a", 1)])
        with pytest.raises(ConfigError, match="identity='a' is not alive"):
            replay([("a", -1)])
        with pytest.raises(ConfigError, match="size_bytes=-1 of 'a' is negative"):
            CachingAllocator().allocate("a", -1)
        with pytest.raises(ConfigError, match="limit_bytes=0 is no amount of memory"):
            replay([], limit_bytes=0)


sizes = st.one_of(
    st.integers(1, 4 * KIB),
    st.integers(1, 2 * MIB),
    st.integers(MIB, 12 * MIB),
    st.integers(1, 30).map(lambda count: count * 2 * MIB),
)
# What to do: allocate this size, free the block of this number (counted from the oldest), or empty the cache.
steps = st.lists(
    st.one_of(
        st.tuples(st.just("allocate"), sizes),
        st.tuples(st.just("free"), st.integers(0, 50)),
        st.tuples(st.just("empty"), st.just(0)),
    ),
    max_size=60,
)
limits = st.one_of(st.none(), st.integers(20, 200).map(lambda count: count * MIB))


def check_against(twin, allocator, actions):
    """Run the same actions through both and compare all blocks after each; then free everything."""
    alive = []
    for number, (action, value) in enumerate(actions):
        if action == "allocate":
            fitted = allocator.allocate(number, value)
            assert fitted == twin.allocate(number, value)
            alive += [number] if fitted else []
        elif action == "free" and alive:
            identity = alive.pop(value % len(alive))
            allocator.free(identity)
            twin.free(identity)
        elif action == "empty":
            allocator.empty_cache()
            twin.empty_cache()
        check_invariants(allocator)
        assert allocator.blocks() == twin.blocks()
        assert allocator.reserved_bytes == twin.reserved_bytes
    for identity in alive:
        allocator.free(identity)
    return allocator


def check_invariants(allocator):
    blocks = allocator.blocks()
    for (address, size_bytes, _), (following, _, _) in zip(blocks, blocks[1:], strict=False):
        assert address + size_bytes <= following
    assert sum(size_bytes for _, size_bytes, _ in blocks) == allocator.reserved_bytes
    assert sum(size_bytes for _, size_bytes, in_use in blocks if in_use) == allocator.allocated_bytes
    assert allocator.requested_bytes <= allocator.allocated_bytes <= allocator.reserved_bytes
    assert allocator.limit_bytes is None or allocator.reserved_bytes <= allocator.limit_bytes


@settings(max_examples=150, deadline=None)
@given(
    steps,
    limits,
    st.sampled_from([None, 20, 32]),
    st.sampled_from([0, 2, 8]),
)
def test_blocks_lie_where_the_slow_twin_puts_them(actions, limit_bytes, max_split_size_mb, divisions):
    options = AllocatorOptions(max_split_size_mb=max_split_size_mb, roundup_power2_divisions=divisions)
    allocator = check_against(
        SegmentTwin(options, limit_bytes), CachingAllocator(options, limit_bytes=limit_bytes), actions
    )
    assert allocator.allocated_bytes == allocator.requested_bytes == 0
    assert len(allocator.blocks()) == allocator.segments  # every segment has grown together
    allocator.empty_cache()
    assert allocator.reserved_bytes == allocator.segments == 0


@settings(max_examples=150, deadline=None)
@given(steps, limits, st.sampled_from([0, 4]))
def test_expandable_blocks_lie_where_the_slow_twin_puts_them(actions, limit_bytes, divisions):
    options = AllocatorOptions(expandable_segments=True, roundup_power2_divisions=divisions)
    allocator = check_against(
        ExpandableTwin(options, limit_bytes), CachingAllocator(options, limit_bytes=limit_bytes), actions
    )
    assert allocator.allocated_bytes == 0
    allocator.empty_cache()
    assert allocator.blocks() == []
    assert allocator.reserved_bytes == allocator.segments == 0
