"""Rows of a parameter: which a process holds, and what of a state is its own."""

import pytest
import torch

from featherweight.errors import ConfigError
from featherweight.optim import AdamW, GaLoreAdamW
from featherweight.optim.sharding import (
    ParameterShard,
    agree,
    at_hand,
    register_shard,
    register_unsharded,
    shard_of,
    sharded_of,
    unsharded_of,
)
from featherweight.unwrap import local_of


class Two:
    """Collectives of two processes of which this one has all rows twice."""

    world_size, position = 2, 0

    def sum_(self, tensor):
        tensor.mul_(2)

    def gather_rows(self, rows, total):
        return torch.cat([rows, rows])[:total]

    def all_true(self, flags):
        return [False for _ in flags]

    def distribute(self, part, total, axis=0):
        return torch.cat([part, part], axis).narrow(axis, 0, total)


def shard(rows=7, start=0, stop=4):
    return ParameterShard((rows, 3), start, stop, Two())


def test_a_shard_has_the_shape_of_its_rows_and_gathers_all():
    assert shard().shape == (4, 3) and shard(1, 1, 1).shape == (0, 3)
    assert shard().whole(torch.ones(4, 3)).shape == (7, 3)


def test_ordinary_parameters_have_no_shard_and_agree_with_themselves():
    parameter = torch.nn.Parameter(torch.ones(4, 3))
    assert shard_of(parameter) is None and local_of(parameter) is parameter
    assert agree([parameter], [True]) == [True]
    register_shard(parameter, shard())
    assert agree([parameter, torch.ones(1)], [True, True]) == [False, True]


def test_a_state_is_cut_to_the_rows_and_made_whole_again():
    state = {"exp_avg": torch.arange(21.0).view(7, 3), "basis_right": torch.ones(3, 2), "codes": torch.ones(4)}
    local = shard().local_state(state, {"exp_avg": (0, 7)})
    assert local["exp_avg"].tolist() == state["exp_avg"][:4].tolist() and local["basis_right"].shape == (3, 2)
    whole = shard().distributed_state({**local}, {"exp_avg": (0, 7), "codes": (0, 8)})
    assert whole["exp_avg"].shape == (7, 3) and whole["codes"].shape == (8,) and whole["basis_right"].shape == (3, 2)


def test_blocks_across_processes_are_refused():
    shard(512, 0, 256).require_whole_blocks("weight", 3, 256)
    with pytest.raises(ConfigError, match="splits blocks of 256"):
        shard(7, 0, 4).require_whole_blocks("weight", 3, 256)


def test_the_plan_follows_from_the_whole_shape_and_the_moments_from_the_rows():
    wide = torch.nn.Parameter(torch.ones(4, 12))
    register_shard(wide, ParameterShard((8, 12), 0, 4, Two()))
    tall = torch.nn.Parameter(torch.ones(6, 5))
    register_shard(tall, ParameterShard((12, 5), 0, 6, Two()))
    # As DTensors they would have the whole shape; so they do here, for the plan alone.
    wide.data, tall.data = torch.ones(8, 12), torch.ones(12, 5)
    left, right = GaLoreAdamW([wide, tall], rank=2).layouts.values()
    assert (left.side, left.moment_shapes["exp_avg"], left.basis_shapes()) == ("left", (2, 6), {"basis_left": (8, 2)})
    assert (right.side, right.moment_shapes["exp_avg"]) == ("right", (6, 2))
    assert left.spread == {"exp_avg": (1, 12), "exp_avg_sq": (1, 12)}
    assert right.spread == {"exp_avg": (0, 12), "exp_avg_sq": (0, 12)}
    state = {"exp_avg": torch.arange(24.0).view(2, 12)}
    local = left.shard.local_state(state, left.spread)
    assert local["exp_avg"].tolist() == state["exp_avg"][:, :6].tolist()
    assert left.shard.distributed_state(local, left.spread)["exp_avg"].shape == (2, 12)
    (dense,) = AdamW([wide]).layouts.values()
    assert dense.shape == dense.moment_shapes["exp_avg"] == (4, 12)


def test_whether_a_state_is_quantised_follows_from_the_whole_size():
    # 6144 elements, of which a process has 3072: fewer than are quantised. Mutation: a plan from the rows at hand.
    parameter = torch.nn.Parameter(torch.ones(6, 1024))
    register_shard(parameter, ParameterShard((6, 1024), 0, 3, Two()))
    (layout,) = AdamW([parameter], state_bits=8).layouts.values()
    assert layout.moment_kind == "codes8" and layout.moment_shapes["exp_avg"] == (3, 1024)


def test_the_whole_of_a_sharded_parameter_is_known_by_it_and_an_ordinary_tensor_is_itself():
    rows, whole, other = (torch.nn.Parameter(torch.ones(size, 3)) for size in (4, 7, 2))
    register_unsharded(whole, rows)
    assert sharded_of(whole) is rows and sharded_of(other) is other
    assert [one is whole for one in unsharded_of([rows])] == [True] and unsharded_of([other]) == []
    assert at_hand(other) is other


def test_what_stands_for_rows_of_codes_is_at_hand():
    handle, rows = torch.nn.Parameter(torch.ones(7, 3)), torch.ones(4, 3)
    register_shard(handle, ParameterShard((7, 3), 0, 4, Two(), rows=rows))
    assert at_hand(handle) is rows
