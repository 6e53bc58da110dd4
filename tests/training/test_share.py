"""Shares of a held-out split: every item once, equally many passes, sums of one process."""

import torch

from featherweight.training.share import Share


class Three:
    """Three processes, of which this is one; what is summed here is what this one has, three times."""

    size = 3

    def __init__(self, rank):
        self.rank = rank

    def sums(self, *values):
        return [3.0 * value for value in values]

    def gather(self, value):
        return [value - 1, value, value + 1]


def test_every_item_counts_once_and_all_make_equally_many_passes():
    # Mutations: the last turn left out for those who have nothing, an item that counts twice.
    for number in range(8):
        shares = [list(Share(Three(rank)).of(range(number))) for rank in range(3)]
        assert sorted(item for one in shares for item, counts in one if counts) == list(range(number))
        assert {len(one) for one in shares} == {-(-number // 3)}


def test_alone_everything_is_mine():
    assert list(Share().of("ab")) == [("a", True), ("b", True)]
    assert Share().sums(1, 2.5) == [1.0, 2.5] and Share().largest(3.0) == 3.0


def test_sums_and_counts_are_those_of_all():
    share = Share(Three(1))
    assert share.sums(2, 0.5) == [6.0, 1.5] and share.largest(4.0) == 5.0
    counts = torch.tensor([[1, 2], [3, 4]])
    assert torch.equal(share.sum(counts), 3 * counts) and share.sum(counts).dtype == torch.int64
