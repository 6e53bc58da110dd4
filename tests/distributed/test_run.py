"""Recipes over two processes: the training of one process, one folder, and errors that all of them raise."""

import pytest
import torch
from distributed_loop import EPOCHS, GALORE, VARIANTS, grow, recipe
from shared_training import largest_difference

from featherweight.distributed.run import begin_sharding
from featherweight.distributed.world import World
from featherweight.errors import ConfigError
from featherweight.training.loop import Loop

pytestmark = pytest.mark.xdist_group("two processes")  # they find out everything once


@pytest.fixture
def found(two):
    """What two processes have found that run recipes."""
    return [each["recipes"] for each in two]


@pytest.mark.parametrize("name", ["ordinary", "cores", "adamw"])
def test_two_processes_train_as_one_whatever_their_shares(found, name):
    # Three micro-batches on two processes: one of them repeats its own with weight 0. Mutations: a mean over ranks in
    # place of items, a micro-batch drawn twice, the repeated one counted.
    loop = Loop(recipe(**VARIANTS[name]))
    losses = [loop.step()["loss"] for _ in range(8)]
    for each in found:
        # Float64 sums in another order.
        assert each[name]["losses"] == pytest.approx(losses, rel=1e-12)
        assert largest_difference(each[name]["weights"], loop.model.state_dict()) < 1e-12
        assert each[name]["items"] == loop.progress.items
        # Six micro-batches of the held-out split on two processes. Mutation: a mean of means over processes.
        assert each[name]["held_out"] == pytest.approx(loop.evaluate(), rel=1e-12)


@pytest.mark.parametrize("name", VARIANTS)
def test_all_processes_hold_the_same_bits_and_report_the_same_numbers(found, name):
    one, two = (each[name] for each in found)
    assert one["losses"] == two["losses"] and one["items"] == two["items"]
    assert all(torch.equal(one["weights"][key], two["weights"][key]) for key in one["weights"])


def test_a_resumed_run_is_the_uninterrupted_one_bit_by_bit_on_every_rank(found):
    # Mutation: random numbers of rank 0 for all, or a place in the data that counts micro-batches of one process.
    assert [each["resumed"]["equal"] for each in found] == [True, True]


def test_one_run_folder_holds_what_one_process_would_write(found):
    files = found[0]["resumed"]["files"]
    for name in ("recipe.yaml", "metrics.jsonl", "summary.json", "report.html", "model/weights.pt", "checkpoints"):
        assert f"whole/{name}" in files


def test_a_checkpoint_of_one_process_goes_on_in_two_and_then_in_one_again(two, folder_of_two):
    # Two steps, three, and three. Mutation: a place in the data that counts those of a process.
    grown, loop = grow(folder_of_two / "grown", 8), Loop(recipe())
    for _ in range(8):
        loop.step()
    assert largest_difference(grown.model.state_dict(), loop.model.state_dict()) < 1e-12


def test_all_processes_end_early_after_the_same_evaluation_and_go_on_together(found):
    # Mutations: a reason to stop that the first process keeps to itself, weights of the best evaluation on every rank.
    loop, losses = Loop(recipe(**EPOCHS)), []
    for _ in range(8):
        loop.step()
        losses.append(loop.evaluate()["held_out_loss"])
    best = 1 + min(range(8), key=losses.__getitem__)
    for each in found:
        judged = each["judged"]
        assert judged["why"].startswith("early_stopping: held_out_loss has not become better")
        # The first evaluation is the best so far, two more are waited for; 4 epochs of 24 samples are 8 steps of 12.
        assert judged["steps"] == [3, loop.recipe.step_count] == [3, 8]
        assert judged["best"] == [3, best]


def test_a_loss_that_is_not_finite_on_one_rank_is_an_error_on_all_before_any_update(found):
    for each in found:
        assert "is not finite in step 2 on rank 0" in each["broken"] and each["untouched"]


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("seeds", "the recipe differs between rank 0 and rank 1"),
        ("few", "accumulation_steps=1 is below the 2 processes"),
        ("none", "sharding.kind=none, but 2 processes were started"),
        ("used folder", "already holds a run"),
        ("bad key", "stpes=3 is unknown"),
    ],
)
def test_what_cannot_run_together_is_one_sentence_on_every_rank(found, what, words):
    assert all(words in each[what] and "rank 1:" not in each[what] for each in found)


def test_processes_that_nobody_has_joined_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match=r"WORLD_SIZE=2 processes were started and have no group"):
        begin_sharding(World(), recipe(optimizer=GALORE))
