"""Orders of rows: shares of sources hold everywhere, like lengths stand together, every place can be found again."""

import itertools

import numpy as np
import pytest

from featherweight.text.row_order import Mixture, RowOrder, micro_batch_rows
from featherweight.training.order import shuffled_rows

SOURCES = [range(0, 30), range(30, 40)]
LENGTHS = [(7 * row) % 23 + 1 for row in range(40)]
ORDERS = {
    "shuffled": RowOrder(SOURCES),
    "mixed": RowOrder(SOURCES, [1.0, 3.0]),
    "grouped": RowOrder(SOURCES, None, LENGTHS),
    "mixed and grouped": RowOrder(SOURCES, [1.0, 3.0], LENGTHS),
}


def first(order, count, size=4, start=0, step=1, seed=5):
    numbers = itertools.count(start, step)
    return list(itertools.islice(micro_batch_rows(numbers, order, micro_batch_size=size, seed=seed), count))


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
@pytest.mark.parametrize("size", [3, 4, 50])
def test_a_place_is_found_again_and_processes_share_the_micro_batches(order, size):
    through = first(order, 40, size)
    assert first(order, 3, size, start=37) == through[37:]
    assert first(order, 20, size, start=1, step=2) == through[1::2]
    assert first(order, 40, size, seed=6) != through


def test_without_weights_and_lengths_the_order_is_that_of_every_task():
    plain = shuffled_rows(itertools.count(), micro_batch_size=4, row_count=40, seed=5)
    assert first(ORDERS["shuffled"], 30) == list(itertools.islice(plain, 30))


@pytest.mark.parametrize("name", ["shuffled", "grouped"])
@pytest.mark.parametrize("size", [3, 4, 7])
def test_an_epoch_has_every_row_once(name, size):
    rows = list(itertools.chain.from_iterable(first(ORDERS[name], 280, size)))
    counts = np.bincount(rows[: 40 * (280 * size // 40)])
    # A group of like lengths may reach over the border of two epochs, by no more than itself.
    assert counts.max() - counts.min() <= (0 if name == "shuffled" else 2)


@pytest.mark.parametrize("weights", [[1.0, 3.0], [0.2, 0.001, 5.0], [1.0] * 7])
def test_shares_hold_over_any_stretch(weights):
    mixture = Mixture(weights, seed=1)
    wanted = np.array(weights) / sum(weights)
    for start, stop in ((0, 100), (0, 10_000), (123_456, 133_456)):
        counts = mixture.counts(start, stop)
        assert counts.sum() == stop - start
        # The discrepancy of this sequence stays below a few places; chance alone would miss 100 of 10,000.
        assert np.abs(counts - wanted * (stop - start)).max() <= 4


def test_each_source_has_epochs_of_its_own():
    rows = np.array(list(itertools.chain.from_iterable(first(ORDERS["mixed"], 100))))
    small = rows[rows >= 30]
    assert abs(len(small) - 300) <= 3
    assert all(sorted(small[n : n + 10]) == list(range(30, 40)) for n in range(0, len(small) - 9, 10))
    assert list(small[:10]) != list(small[10:20])


def test_like_lengths_stand_together_and_the_longest_come_first():
    order = RowOrder([range(400)], None, [(7 * row) % 101 + 1 for row in range(400)])
    grouped, plain = first(order, 100), first(RowOrder(order.sources), 100)

    def padding(batches):
        return sum(
            max(order.lengths[r] for r in rows) * len(rows) - sum(order.lengths[r] for r in rows) for rows in batches
        )

    assert padding(grouped) < 0.1 * padding(plain)
    assert max(order.lengths[row] for row in grouped[0]) == max(order.lengths)
    steps = [order.lengths[rows[0]] for rows in grouped]
    assert steps != sorted(steps) and steps != sorted(steps, reverse=True)
