import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featherweight.simulated import SimulatedDevice, counting_only
from featherweight.tiles import repetitions, tiles

CUDA = SimulatedDevice("cuda")


LENGTHS = {"length": st.integers(0, 300), "size": st.integers(1, 40), "first": st.integers(0, 100)}


@settings(deadline=None, derandomize=True)
@given(**LENGTHS)
def test_tiles_cover_exactly_and_are_cut_at_multiples_of_the_size(length, size, first):
    runs = list(tiles(length, size, first=first))
    covered = [index for start, stop in runs for index in range(start, stop)]
    assert covered == list(range(first, first + length))
    assert all(0 < stop - start <= size for start, stop in runs)
    assert all(start % size == 0 for start, _ in runs[1:])


@settings(deadline=None, derandomize=True)
@given(**LENGTHS)
def test_a_simulation_has_the_first_two_and_the_last_of_the_same_tiles(length, size, first):
    every = list(tiles(length, size, first=first))
    with counting_only(CUDA):
        few = list(tiles(length, size, first=first))
    assert few == (every if len(every) <= 3 else [every[0], every[1], every[-1]])


@settings(deadline=None, derandomize=True)
@given(**LENGTHS)
def test_repetitions_add_up_to_the_number_of_tiles(length, size, first):
    every = list(tiles(length, size, first=first))
    with counting_only(CUDA):
        counts = [repetitions() for _ in tiles(length, size, first=first)]
        assert repetitions() == 1
    assert sum(counts) == len(every)


@settings(deadline=None, derandomize=True)
@given(**LENGTHS)
def test_elements_counted_with_repetitions_are_all_elements(length, size, first):
    with counting_only(CUDA):
        counted = sum(repetitions() * (stop - start) for start, stop in tiles(length, size, first=first))
    # Mutation: letting the first tile, which is shorter where `first` is no multiple, stand for the others.
    assert counted == length


def test_nested_tiles_multiply():
    def visits():
        return sum(repetitions() for _ in tiles(70, 10) for _ in tiles(50, 10))

    assert visits() == 7 * 5
    with counting_only(CUDA):
        assert len([1 for _ in tiles(70, 10) for _ in tiles(50, 10)]) == 3 * 3
        assert visits() == 7 * 5


def test_a_loop_that_ends_early_leaves_no_repetitions_behind():
    with counting_only(CUDA):
        for start, _ in tiles(100, 10):
            if start:
                break
        assert repetitions() == 1
        with pytest.raises(ZeroDivisionError):
            for start, _ in tiles(100, 10):
                1 // (10 - start)
        assert repetitions() == 1


def test_no_elements_have_no_tiles():
    assert list(tiles(0, 4)) == list(tiles(0, 4, first=3)) == []
    with counting_only(CUDA):
        assert list(tiles(0, 4)) == list(tiles(0, 4, first=3)) == []
