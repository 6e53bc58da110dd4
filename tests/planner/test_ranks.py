"""What each of several GPUs holds and sends: weights and state to the byte, traffic by formula, one sharding chosen."""

import pytest

from featherweight.distributed.traffic import Sizes, fsdp2_bytes
from featherweight.errors import ConfigError
from featherweight.planner.ranks import LINKS, plan_ranks
from featherweight.planner.target import Target
from featherweight.training.estimate import estimate_memory
from featherweight.training.recipe import load_recipe

RECIPE = {
    "task": {"name": "text", "model": "tiny", "corpus": "english", "seq_len": 64, "weights": "random"},
    "optimizer": {"name": "galore", "rank": 8, "lr": 0.01, "layerwise": True, "proj_type": "right"},
    "methods": ["core_gradient"],
    "steps": 4,
    "micro_batch_size": 1,
    "accumulation_steps": 16,
}


@pytest.fixture(scope="module")
def estimate():
    return estimate_memory(None, load_recipe({**RECIPE, "accumulation_steps": 1}), device="h100-80gb")


@pytest.fixture(scope="module")
def found(estimate):
    return plan_ranks(RECIPE, 16, device="h100-80gb", estimate=estimate)


def test_shares_of_rows_are_a_part_of_weights_and_state_and_copies_are_all(found):
    ddp, hsdp, fsdp2 = (row.bytes_by_category for row in found.rows)
    assert [row.sharding for row in found.rows] == ["ddp", "hsdp", "fsdp2"]
    assert [row.shard_size for row in found.rows] == [1, 8, 16]
    # Norms and biases of rows that do not divide are rounded up.
    assert ddp["weights"] / 16 <= fsdp2["weights"] <= ddp["weights"] / 16 * 1.05
    assert hsdp["weights"] == pytest.approx(2 * fsdp2["weights"], rel=0.05)
    assert fsdp2["optimizer_state"] < hsdp["optimizer_state"] < ddp["optimizer_state"]
    assert ddp["gathered"] == 0 < fsdp2["gathered"]


def test_traffic_is_that_of_the_formula(found):
    ddp, hsdp, fsdp2 = found.rows
    # Two times fifteen sixteenths of cores and other gradients, in float32.
    elements = ddp.sent_bytes / 4 / (2 * 15 / 16)
    assert elements == int(elements)
    assert hsdp.between_nodes_bytes == pytest.approx(2 * 0.5 * 4 * elements / 8)
    assert hsdp.sent_bytes > hsdp.between_nodes_bytes and fsdp2.between_nodes_bytes is None
    assert fsdp2_bytes(Sizes(0, 0, 0, 1), 16) < fsdp2.sent_bytes


def test_whole_copies_are_taken_where_they_fit_and_rows_where_only_these_do(found):
    assert found.best.sharding == "ddp" and "sharding=ddp" in found.verdict
    usable = found.rows[1].total_bytes  # holds copies of a machine and no more
    small = Target(
        found.target.name, "cuda", int(usable / (1 - found.target.margin)) + 1, found.target.calibration, None
    )
    tight = type(found)(small, found.recipe, 16, found.rows, {}, found.compute_s)
    assert tight.best.sharding == "hsdp"
    none = type(found)(
        Target(found.target.name, "cuda", 1 << 20, found.target.calibration, None),
        found.recipe,
        16,
        found.rows,
        {},
        1.0,
    )
    assert none.best is None and none.verdict.startswith("Nothing fits: fsdp2 needs")


def test_the_page_and_the_plain_values_say_the_same(found):
    values, page = found.to_dict(), str(found.report())
    assert values["sharding"] == "ddp" and len(values["rows"]) == 3 and set(values["rows"][0]["seconds"]) == set(LINKS)
    assert "Bytes of the fullest GPU" in page and "links by customary rates" in page


def test_bases_in_shares_take_less_and_send_more(found, estimate):
    recipe = {**RECIPE, "sharding": {"kind": "fsdp2", "basis": "sharded"}}
    shared = plan_ranks(recipe, 16, device="h100-80gb", estimate=estimate)
    for before, after in zip(found.rows, shared.rows, strict=True):
        assert (before.basis, after.basis) == ("replicated", "replicated" if after.sharding == "ddp" else "sharded")
        saved = before.bytes_by_category["optimizer_state"] - after.bytes_by_category["optimizer_state"]
        assert (saved > 0) == (after.sent_bytes > before.sent_bytes) == (after.sharding != "ddp")
    assert shared.to_dict()["rows"][1]["basis"] == "sharded" and "bases" in str(shared.report())


def test_what_has_no_form_on_rows_is_said_and_whole_copies_are_planned():
    recipe = {**RECIPE, "optimizer": {"name": "fira", "rank": 8, "lr": 0.01}, "methods": []}
    found = plan_ranks(recipe, 16, device="h100-80gb")
    assert [row.sharding for row in found.rows] == ["ddp"]
    assert "has no form on sharded rows yet" in found.refused["fsdp2"]


@pytest.mark.parametrize(("gpus", "words"), [(1, "expected at least 2"), (32, "is below the 32 GPUs")])
def test_numbers_that_cannot_be_are_one_sentence(gpus, words):
    with pytest.raises(ConfigError, match=words):
        plan_ranks(RECIPE, gpus, device="h100-80gb")
