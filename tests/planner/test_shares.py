"""What one of several processes holds, by formula, under each placement."""

import math

from distributed_loop import GALORE, recipe

from featherweight.distributed.traffic import Sizes, fsdp2_bytes
from featherweight.optim.sharding import share_of
from featherweight.planner.shares import shares_of, with_shared_bases
from featherweight.training.loop import Loop

DOUBLE = 8
LEFT = {"optimizer": {**GALORE, "proj_type": "left"}}
CORES = {"methods": [{"core_gradient": {"prefer": "memory"}}]}


def planned(placement, processes=2, **changes):
    loop = Loop(recipe(sharding={"kind": "fsdp2", "placement": placement}, **changes))
    return shares_of(loop, processes), [one for one in loop.optimizer.layouts.values() if one.rank is not None]


def test_columns_take_the_bytes_of_rows_and_save_the_sums_of_left_cores():
    (rows, layouts), (side, _) = planned("rows", **LEFT), planned("side", **LEFT)
    left = [one.whole for one in layouts if one.side == "left"]
    assert left and all(one.columns % 2 == 0 for one in left)
    assert rows["left_sums"] == sum(math.prod(one.core_shape) for one in left) and side["left_sums"] == 0
    assert rows["optimizer_state"] == side["optimizer_state"]
    assert side["weights"] <= rows["weights"]  # columns divide where rows may not


def test_shares_of_bases_take_a_part_of_their_bytes_and_are_gathered_where_they_are_used():
    facts, layouts = planned("rows", 3)
    whole, shared = sum(one.whole.basis_bytes() for one in layouts), with_shared_bases(facts)
    assert facts["bases"] == whole
    at_hand = 0
    for one in layouts:
        (length,) = (shape[0] for shape in one.basis_shapes().values())
        start, stop = share_of(length, 3, 0)
        at_hand += (stop - start) * one.rank * DOUBLE
    assert facts["optimizer_state"] - shared["optimizer_state"] == facts["bases"] - at_hand
    assert shared["gathered"] == facts["gathered"] + facts["largest_basis"]
    # An ordinary step gathers a right basis once; of a left one rows need none, and columns all of it.
    assert facts["basis_bytes_gathered"] == whole
    by_rows, by_columns = (planned(one, **LEFT)[0] for one in ("rows", "side"))
    assert by_rows["basis_bytes_gathered"] == 0 and by_columns["basis_bytes_gathered"] == by_columns["bases"] > 0


def test_core_gradients_gather_bases_in_every_pass_and_for_the_update_and_the_norm():
    for side, of_update in (("right", 1), ("left", 0)):
        optimizer = {**GALORE, "layerwise": True, "proj_type": side}
        facts, layouts = planned("rows", accumulation_steps=3, optimizer=optimizer, **CORES)
        whole = sum(one.whole.basis_bytes() for one in layouts)
        # The loop shows a norm, for which what lies outside of the subspace is told from the basis.
        assert facts["basis_bytes_gathered"] == (3 + of_update + 1) * whole
        assert facts["left_sums"] == 0 and (facts["left_cores"] > 0) == (side == "left")


def test_traffic_of_columns_is_that_of_the_formula_without_left_cores():
    sizes = Sizes(projected=256, cores=128, left_cores=64, others=26)
    by_rows, by_columns = (
        fsdp2_bytes(sizes, 2, sums_cores=True),
        fsdp2_bytes(sizes._replace(left_cores=0), 2, sums_cores=True),
    )
    assert by_rows - by_columns == 0.5 * 4 * 64  # the directions, which are gathered over rows alone
