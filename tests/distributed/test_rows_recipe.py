"""Recipes on shares of rows: the training of one process, one folder, bytes as planned, resumed bit by bit."""

import pytest
import ranks
from distributed_loop import grow, recipe
from distributed_rows_recipe import CORES, PLACES, TWINS, VARIANTS
from shared_training import largest_difference

from featherweight.planner.shares import shares_of, with_shared_bases
from featherweight.training.loop import Loop

pytestmark = pytest.mark.slow
"""Processes that import FSDP2 take ten seconds each."""
EXACT = 1e-12
"""Float64 sums in another order."""


@pytest.fixture(scope="module", params=[("fsdp2", 2), ("fsdp2", 3), ("hsdp", 4)], ids=["2", "3", "2x2"])
def found(request, tmp_path_factory):
    kind, size = request.param
    folder = tmp_path_factory.mktemp(f"rows-{kind}-{size}")
    grow(folder / "grown", 2, **CORES, accumulation_steps=5)
    grow(folder / "left", 2, **VARIANTS["columns"], accumulation_steps=5)
    found = ranks.run("distributed_rows_recipe.py", size, folder, str(folder), kind, seconds=900)
    return [{**each, "folder": folder} for each in found]


@pytest.mark.parametrize("name", VARIANTS)
def test_processes_that_hold_rows_train_a_recipe_as_one(found, name):
    # Five micro-batches on two, three or four processes. Mutations: a norm of the rows of one rank, a mean over ranks
    # in place of items, a core that is not averaged over the copies.
    one = found[0][name]
    assert all(each[name]["losses"] == one["losses"] for each in found)
    if name in TWINS:
        twin = found[0]["replicas"][name]
        assert one["losses"] == pytest.approx(twin["losses"], rel=EXACT if name != "text" else 1e-4)
        # A Llama is float32, and Adam turns rounding near zero into whole steps of single entries: no bound for those.
        assert name == "text" or largest_difference(one["weights"], twin["weights"]) < EXACT
        return
    loop = Loop(recipe(**VARIANTS[name], accumulation_steps=5))
    assert one["losses"] == pytest.approx([loop.step()["loss"] for _ in range(8)], rel=EXACT)
    assert largest_difference(one["weights"], loop.model.state_dict()) < EXACT
    # Six micro-batches of the held-out split, on four processes with two passes each.
    assert one["held_out"] == pytest.approx(loop.evaluate(), rel=EXACT)


def test_a_checkpoint_of_one_process_goes_on_in_rows_and_then_in_one_process_again(found):
    # Two steps in one process, three of rows, three in one: checkpoints are those of one process, whoever writes them.
    # The rows (or columns, behind left bases) keep shares of bases in between.
    for name, variant in (("grown", CORES), ("left", VARIANTS["columns"])):
        changes = {**variant, "accumulation_steps": 5}
        grown, loop = grow(found[0]["folder"] / name, 8, **changes), Loop(recipe(**changes))
        for _ in range(8):
            loop.step()
        assert largest_difference(grown.model.state_dict(), loop.model.state_dict()) < EXACT


def test_each_process_holds_the_bytes_that_were_planned_for_it(found):
    # Mutations: a state that is planned by the rows of one process, moments that every process keeps whole.
    size = 2 if len(found) == 4 else len(found)
    for name in ("ordinary", "cores", *PLACES):
        for each in found:
            counted = each[name]["bytes"]
            assert counted["weights"] == counted["planned_weights"]
            assert counted["optimizer_state"] == counted["planned_optimizer_state"]
        placed = {"sharding": {"kind": "fsdp2", **PLACES.get(name, {})}}
        planned = shares_of(Loop(recipe(**VARIANTS[name], accumulation_steps=5, **placed)), size)
        planned = with_shared_bases(planned) if name in PLACES else planned
        assert planned["weights"] == found[0][name]["bytes"]["weights"]
        assert planned["optimizer_state"] == found[0][name]["bytes"]["optimizer_state"]


def test_a_resumed_run_on_rows_is_the_uninterrupted_one_and_its_page_tells_bytes_and_traffic(found):
    if "resumed" not in found[0]:
        pytest.skip("runs of replicas of rows are resumed as those of rows")
    assert all(each["resumed"]["equal"] for each in found)
    page = found[0]["report"]
    assert (
        "planned weights (bytes)" in page
        and "of these weights and gradients by FSDP2, evaluations included (bytes)" in page
    )
    assert "save_best=True keeps the weights of one process" in found[1]["save_best"]
