"""Shares of rows under `fully_shard`: the training of one process, moments by the row, one verdict for all."""

import math

import pytest
import ranks
import torch
from distributed_fsdp2 import KINDS, SAVED, STEPS, Stack, narrow_training, optimizer_for, stack
from shared_training import largest_difference, train

import featherweight as fw

pytestmark = pytest.mark.slow
"""Two processes that import FSDP2 and DCP take half a minute of processor time."""
EXACT = 1e-12
"""Float64 sums in another order."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fsdp2")


@pytest.fixture(scope="module")
def found(folder):
    return ranks.run("distributed_fsdp2.py", 2, folder, str(folder), seconds=300)


def alone(name, steps=STEPS):
    model = stack()
    optimizer = optimizer_for(model, **KINDS[name])
    train(model, optimizer, steps=steps)
    return model, optimizer


@pytest.mark.parametrize("name", KINDS)
def test_two_processes_that_hold_rows_train_as_one(found, name):
    # 13 rows on two, one row on two. Mutations: a basis that a process fits to its own rows, a left core that is not
    # summed, a side or a refresh turn that follows from the rows at hand.
    model, _ = alone(name)
    for each in found:
        assert largest_difference(each["trained"][name]["values"], model.state_dict()) < EXACT


def test_a_process_keeps_the_moments_of_its_rows(found):
    # Mutation: moments behind a left basis that every process keeps whole.
    for side in ("right", "left"):
        _, optimizer = alone(side, steps=1)
        moments = sum(layout.moment_bytes() for layout in optimizer.layouts.values())
        others = optimizer.state_bytes() - moments
        # 7 of 13 rows (or columns) of a core of rank 3, 7 of 13 and 1 of 1 of a bias, 1 of 1 of a row of 16: the larger
        # halves of what two do not divide.
        uneven = 2 * 8 * (3 / 2 + 1 / 2 + 16 / 2 + 1 / 2)
        assert found[0]["trained"][side]["bytes"] == moments / 2 + others + uneven


def test_a_right_sided_step_sends_nothing_and_a_left_sided_one_its_core(found):
    shapes = [tuple(p.shape) for name, p in Stack().named_parameters() if p.ndim == 2 and _is_projected(name)]
    gathered = sum(8 * 2 * math.ceil(rows / 2) * columns for rows, columns in shapes)
    core = sum(8 * 3 * 2 * math.ceil(columns / 2) for _, columns in shapes)
    for each in found:
        right, left = each["traffic"]["right"], each["traffic"]["left"]
        assert [step.get("all_gather", 0) for step in right] == [gathered, 0, 0, 0, gathered]
        assert not any(step.get("all_reduce", 0) + step.get("reduce_scatter", 0) for step in right)
        # Half of an all-reduce on the way to the columns of each, the other half on the way back.
        assert all(step["reduce_scatter"] == core for step in left)
        assert [step["all_gather"] for step in left] == [gathered + core, core, core, core, gathered + core]


def test_a_weight_or_a_layer_that_one_process_uses_alone_is_an_error_with_its_name_and_no_hang(found):
    # Mutation: FSDP2 as it is, which waits for the time-out, or sums what does not belong together.
    for each in found:
        alone_used = each["disagreement"]
        assert "'row.bias' has a gradient on rank 1 and none on rank 0" in alone_used["weight"]
        assert "rank 0 has come to the weights of the model outside of its layers and rank 1" in alone_used["layer"]
        assert "to the weights of 'layers.1'" in alone_used["layer"]
        assert "'row.bias' has a gradient on rank 1 and none on rank 0" in alone_used["cores"]


def test_every_sharded_model_of_a_process_counts_what_it_sends(found):
    for each in found:
        first, second, own = each["several"]
        assert first == second == own and all(first.values())


def test_a_layer_with_fewer_rows_than_processes_trains_as_one(found):
    one = narrow_training()
    for each in found:
        assert largest_difference(each["narrow"], one) < EXACT


def _is_projected(name):
    return name.startswith(("layers", "odd", "even"))


def test_a_row_that_is_not_finite_on_one_process_is_skipped_on_all(found):
    # Mutation: a verdict of the rows at hand: then the other process would step, or wait.
    for each in found:
        assert each["not_finite"]["skipped"] == 1
        assert each["not_finite"]["stayed"] == ["layers.0.0.weight"]


@pytest.mark.parametrize("name", SAVED)
def test_a_checkpoint_resumes_bitwise_on_as_many_processes_and_exactly_on_one(found, folder, name):
    assert all(each["saved"][name]["resumed"] and each["saved"][name]["parts"] for each in found)
    model = stack()
    optimizer = optimizer_for(model, **KINDS[name])
    fw.distributed.load(folder / name, model, optimizer)
    train(model, optimizer, steps=6, start=6)
    assert largest_difference(model.state_dict(), found[0]["saved"][name]["values"]) < EXACT


def test_state_dicts_of_torchs_own_helpers_hold_the_whole_state_and_count_no_step(found):
    # Mutations: local tensors, of which every process gets those of rank 0; a step that the helper makes.
    for each in found:
        assert each["torchs_own"]["counted"]
        assert largest_difference(each["torchs_own"]["resumed"], each["torchs_own"]["whole"]) == 0


def test_quantised_moments_are_saved_as_they_are_and_read_by_one_process(found, folder):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(32, 256, bias=False), torch.nn.Linear(256, 256, bias=False))
    groups = [{"params": list(model.named_parameters()), "rank": 16, "proj_type": "right", "state_bits": 8}]
    optimizer = fw.optim.GaLoreAdamW(groups, lr=1e-3)
    fw.distributed.load(folder / "eight", model, optimizer)
    state = optimizer.state_dict()["state"]
    assert all(
        torch.equal(state[number]["exp_avg_codes"], codes) for number, codes in found[0]["eight_bits"]["codes"].items()
    )


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("Fira", "has no form on sharded rows yet"),
        ("min_memory", "proj_type='min_memory'"),
        ("full", "proj_type='full'"),
        ("ddp", "is a DTensor with placements"),
        ("copies", "shard_size=3 does not divide the 2 processes"),
        ("blocks", "splits blocks of 256 elements"),
        ("unknown", "is a DTensor of which nothing is known"),
        ("own", "no error"),
        ("FSDP 1", "flattens its shards, which then have no rows (FSDP 1)"),
        ("flattened", "is a flattened shard of FullyShardedDataParallel (FSDP 1)"),
        ("tensor parallel, columns", "that fully_shard has not made"),
        ("tensor parallel, rows", "that fully_shard has not made"),
    ],
)
def test_what_has_no_form_on_rows_is_one_sentence(found, what, words):
    assert all(words in each["refused"][what] for each in found)


@pytest.mark.parametrize("size", [3, 4])
def test_other_numbers_of_processes_train_the_same_and_read_the_checkpoints_of_two(found, folder, tmp_path, size):
    others = ranks.run("distributed_fsdp2.py", size, tmp_path, str(folder), "continue", seconds=600)
    for name in KINDS:
        model, _ = alone(name)
        assert largest_difference(others[0]["trained"][name]["values"], model.state_dict()) < EXACT
    assert largest_difference(others[-1]["narrow"], narrow_training()) < EXACT
    assert largest_difference(others[-1]["torchs_own"], found[0]["torchs_own"]["whole"]) < EXACT
    for name in SAVED:
        assert largest_difference(others[-1]["continued"][name], found[0]["saved"][name]["values"]) < EXACT
