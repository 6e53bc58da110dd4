"""How a projected matrix is seen by a process that holds some of it."""

import pytest
import torch

from featherweight.errors import ConfigError
from featherweight.optim import AdamW, GaLoreAdamW
from featherweight.optim.sharding import ParameterShard, register_shard, share_bases, share_of


class Four:
    """Four processes of which this is the second."""

    world_size, position = 4, 1


def layout_of(shape, axis=0, shares_bases=False, **options):
    parameter = torch.nn.Parameter(torch.ones(shape))
    bounds = share_of(shape[axis], 4, 1)
    register_shard(parameter, ParameterShard(shape, *bounds, Four(), axis=axis))
    if shares_bases:
        share_bases([parameter, torch.ones(1)])
    (layout,) = GaLoreAdamW([parameter], rank=8, **options).layouts.values()
    return layout


def test_columns_of_a_weight_have_a_core_and_moments_of_their_own():
    layout = layout_of((16, 64), axis=1, proj_type="left")
    assert (layout.rows, layout.columns, layout.all_columns, layout.core_shape) == (16, 16, 64, (8, 16))
    assert layout.whole.core_shape == (8, 64) and layout.basis_shapes() == {"basis_left": (16, 8)}
    # Random bits: the first column at hand, and from row to row those of the whole weight.
    assert (layout.first_element, layout.row_stride) == (16, 64)
    assert layout.spread == {"exp_avg": (1, 64), "exp_avg_sq": (1, 64)}
    assert layout.places == ("left", "columns", "columns", "all")
    by_rows = layout_of((16, 64), proj_type="left")
    assert (by_rows.rows, by_rows.columns, by_rows.first_element, by_rows.row_stride) == (4, 64, 256, None)
    assert by_rows.nbytes() == layout.nbytes() and by_rows.places == ("left", "rows", "columns", "all")


def test_columns_behind_another_basis_or_below_32_bits_are_refused():
    with pytest.raises(ConfigError, match="is shared by columns and has a right basis"):
        layout_of((64, 64), axis=1, proj_type="right")
    with pytest.raises(ConfigError, match="is shared by columns and has moments below 32 bits"):
        layout_of((64, 1024), axis=1, proj_type="left", state_bits=8)
    parameter = torch.nn.Parameter(torch.ones(16, 64))
    register_shard(parameter, ParameterShard((16, 64), 16, 32, Four(), axis=1))
    with pytest.raises(ConfigError, match="is shared by columns and has no basis"):
        AdamW([parameter])


def test_quantised_moments_behind_a_left_basis_lie_by_whole_blocks_or_say_why_not():
    layout = layout_of((64, 1024), proj_type="left", state_bits=8)
    assert layout.core_shape == layout.moment_shapes["exp_avg"] == (8, 256) and layout.first_moment == 2048
    assert layout.places[2] == "blocks of 256"
    assert layout.moment_bytes() == layout.whole.with_moments((8, 1024), {"state_bits": 8}).moment_bytes() / 4
    odd = layout_of((64, 520), proj_type="left", state_bits=8)
    assert odd.core_shape == (8, 520) and odd.spread == {}
    assert odd.places[2] == "all: 4160 codes are no whole blocks of 256 on each of 4"
    half = layout_of((64, 1024), proj_type="left", state_bits=16)
    assert half.places[2] == "all: 16 bits are rounded along whole rows of the core"


def test_shared_bases_have_a_share_of_the_bytes_and_are_part_of_what_is_spread():
    whole, share = layout_of((64, 32)), layout_of((64, 32), shares_bases=True)
    assert (whole.basis_bytes(), share.basis_bytes()) == (32 * 8 * 4, 8 * 8 * 4)
    assert share.spread == {**whole.spread, "basis_right": (0, 32)} and share.places[3] == "a share"
    assert not share.has_own_basis and layout_of((32, 64), shares_bases=True).has_own_basis
    state = {}
    share.create_state(state, torch.device("cpu"))
    assert state["basis_right"].shape == (8, 8)
    assert share.nbytes() == sum(one.nbytes for one in state.values())
    random = layout_of((64, 32), shares_bases=True, basis_method="random")
    assert not random.shares_bases and random.places[3] == "drawn from the seed"
