"""Sums of parameters of which processes hold rows: each gets its rows, all get one norm and one verdict."""

import torch

from featherweight.optim.backward.row_exchange import exchange_rows
from featherweight.optim.sharding import ParameterShard, register_shard
from featherweight.optim.step.check import Size


class Two:
    """Two processes, of which this is the first and the other one has the same sums, and a broken second parameter."""

    world_size = 2

    def mean_rows(self, wholes):
        return [whole[: -(-len(whole) // 2)] for whole in wholes]

    def sums(self, values):
        half = len(values) // 2
        return [2 * value for value in values[:half]] + [
            value + (index == 1) for index, value in enumerate(values[half:])
        ]


class Sum:
    def __init__(self, whole):
        self.whole, self.rows, self.agreed = whole, [], None

    def row_tensors(self):
        return [self.whole]

    def take_rows(self, rows):
        self.rows = rows

    def size(self):
        return Size(float(self.rows[0].square().sum()), True)

    def agree(self, size):
        self.agreed = size


def test_each_process_gets_its_rows_and_the_verdict_of_all():
    # Mutation: a verdict of the process at hand: the second sum would look sound here.
    collectives, totals = Two(), {}
    for rows in (5, 3):
        parameter = torch.nn.Parameter(torch.zeros(rows, 2))
        register_shard(parameter, ParameterShard((rows, 2), 0, -(-rows // 2), collectives))
        totals[parameter] = Sum(torch.ones(rows, 2))
    exchange_rows(totals)
    first, second = totals.values()
    assert first.rows[0].shape == (3, 2) and second.rows[0].shape == (2, 2)
    assert first.agreed == Size(12.0, True) and not second.agreed.is_usable


def test_whole_parameters_are_left_alone():
    total = Sum(torch.ones(2, 2))
    exchange_rows({torch.nn.Parameter(torch.zeros(2, 2)): total})
    assert total.rows == [] and total.agreed is None
