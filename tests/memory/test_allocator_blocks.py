"""Blocks that are cut and merged, and the free ones of a pool."""

import pytest

from featherweight.memory.allocator_blocks import Block, Pool


@pytest.fixture
def pool():
    return Pool(page_bytes=2**21, is_small=False)


def cut_block(pool, *sizes):
    """Return the pieces of one block, as if they were in use."""
    pieces = [Block(pool, 0, sum(sizes))]
    for size in sizes[:-1]:
        pieces.append(pieces[-1].cut(size))
    for piece in pieces:
        piece.is_allocated = True
    return pieces


def free(pool, block):
    block.is_allocated = False
    pool.add(block)


def test_pieces_lie_side_by_side_and_grow_together_in_any_order(pool):
    for order in ((0, 1, 2), (2, 0, 1), (1, 2, 0)):
        pieces = cut_block(pool, 512, 1024, 2048)
        assert [(one.address, one.size_bytes) for one in pieces] == [(0, 512), (512, 1024), (1536, 2048)]
        for place in order:
            free(pool, pieces[place])
        (whole,) = pool.free_blocks()
        assert (whole.address, whole.size_bytes, whole.is_whole_segment) == (0, 3584, True)
        pool.remove(whole)


def test_the_best_fit_is_the_smallest_that_is_large_enough_then_the_lowest(pool):
    pieces = cut_block(pool, 1024, 512, 4096, 512, 1024)
    for place in (0, 2, 4):
        free(pool, pieces[place])
    assert pool.best_fit(600, expandable=False) is pieces[0]
    assert pool.best_fit(2000, expandable=False) is pool.largest() is pieces[2]
    assert pool.best_fit(5000, expandable=False) is None
    assert pool.first_of_size(1025) is pieces[2] and pool.first_of_size(4097) is None


def test_free_memory_is_not_merged_with_memory_that_is_not_mapped(pool):
    front, back = cut_block(pool, 1024, 4096)
    back.is_mapped = False
    free(pool, back)
    free(pool, front)
    assert front.size_bytes == 1024 and front.expandable_bytes == 5120
    assert pool.first_expandable(5000) is front and list(pool.free_blocks()) == [front]
