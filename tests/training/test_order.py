"""Which rows stand in which micro-batch."""

import itertools

import pytest

from featherweight.errors import ConfigError
from featherweight.training.order import micro_batch_numbers, shuffled_rows


def rows(count, *, size=3, row_count=10, seed=0, **share):
    share = {"process_rank": 0, "world_size": 1, "start": 0, **share}
    numbers = micro_batch_numbers(micro_batch_size=size, where="test", **share)
    return list(itertools.islice(shuffled_rows(numbers, micro_batch_size=size, row_count=row_count, seed=seed), count))


def test_an_epoch_visits_each_row_once_in_an_order_of_its_own():
    seen = list(itertools.chain(*rows(10)))
    epochs = [seen[start : start + 10] for start in (0, 10, 20)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] and rows(10, seed=1) != rows(10)


def test_a_start_goes_on_where_an_uninterrupted_run_would_be():
    assert rows(4, start=6) == rows(10)[6:]


def test_processes_take_turns_and_share_without_overlap():
    shares = [rows(4, process_rank=rank, world_size=3) for rank in range(3)]
    assert [shares[number % 3][number // 3] for number in range(12)] == rows(12)


@pytest.mark.parametrize(
    ("name", "value"),
    [("micro_batch_size", 0), ("world_size", 0), ("process_rank", 1), ("process_rank", -1), ("start", -1)],
)
def test_a_number_out_of_range_is_named_at_once(name, value):
    options = {"micro_batch_size": 1, "process_rank": 0, "world_size": 1, "start": 0, name: value}
    with pytest.raises(ConfigError, match=f"test: {name}={value} is out of range"):
        micro_batch_numbers(**options, where="test")
