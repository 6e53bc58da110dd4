import dataclasses
import json

import pytest

import featherweight as fw
from featherweight.planner import Target, changes, explain
from featherweight.planner.advice import _possible
from featherweight.training.estimate import estimate_memory
from featherweight.training.recipe import Recipe


def test_changes_are_exact_before_others_and_save_what_they_say(tiny):
    task = {"name": "text", "model": tiny, "corpus": "english", "seq_len": 64}
    content = {"task": task, "optimizer": {"name": "adamw", "lr": 0.01}, "steps": 2, "micro_batch_size": 1024}
    recipe, target = Recipe.parse(content, where="recipe"), Target.of("1GB", "cpu")
    found = changes(recipe, target, limit=20)
    assert {one.is_exact for one in found} == {True, False}
    assert [one.is_exact for one in found] == sorted((one.is_exact for one in found), reverse=True)
    assert all(one.saved_bytes > 0 and one.time_ratio > 0 for one in found)
    before = estimate_memory(None, recipe, device="cpu").peak_bytes
    after = estimate_memory(None, recipe.override(found[0].overrides), device="cpu").peak_bytes
    assert before - after == found[0].saved_bytes


@pytest.fixture(scope="module")
def small(tiny):
    """One row of 64 tokens of the tiny decoder: less than a hundredth of what the process itself takes."""
    task = {"name": "text", "model": tiny, "corpus": "english", "seq_len": 64}
    content = {"task": task, "optimizer": {"name": "adamw", "lr": 0.01}, "steps": 2, "micro_batch_size": 1}
    return Recipe.parse(content, where="recipe")


@pytest.fixture(scope="module")
def why(small):
    return explain(small, Target.of("1GB", "cpu"), name="a small model", limit=20)


def test_the_reasons_name_the_largest_allocations_at_the_peak_together_with_the_changes(small, why):
    target = Target.of("1GB", "cpu")
    estimate = estimate_memory(None, small, device="cpu")
    assert why.largest == estimate.top_allocations(5)
    sizes = [one.size_bytes for one, _ in estimate.top_allocations(1000)]
    assert why.largest_tensor.size_bytes == max(sizes)
    assert sum(why.by_category.values()) == estimate.peak_bytes
    assert why.phase == estimate.timeline.peak().phase
    assert why.changes == changes(small, target, limit=20, estimate=estimate) != []


def test_the_reasons_of_a_recipe_need_no_target(small, why):
    found = fw.why(small, "1GB", device="cpu", limit=1)
    assert (found.largest, found.changes, found.name) == (why.largest, why.changes[:1], "the recipe")


def test_what_a_change_saves_is_measured_against_the_tensors_and_not_the_process(why):
    assert {"8-bit moments", "bfloat16 weights"} <= {one.name for one in why.changes}
    tensors = sum(why.by_category.values())
    assert all(0.01 * tensors < one.saved_bytes < 0.01 * 500 * 2**20 for one in why.changes)


def test_the_reasons_read_the_same_as_lines_a_sentence_tables_and_plain_values(why):
    lines = str(why).splitlines()
    assert lines[0] == f"Largest at the peak of a small model ({why.phase})"
    assert lines[1].split()[:2] == fw.report.format_bytes(why.largest[0][0].size_bytes * why.largest[0][1]).split()
    for change in why.changes:
        assert f"  {change}" in lines and f"      {' '.join(change.overrides)}" in lines
        assert f"{change} ({' '.join(change.overrides)})" in why.sentence
        assert change.name in str(why.report())
    assert all(one.module in str(why.report()) for one, _ in why.largest)
    content = json.loads(json.dumps(why.to_dict()))
    assert content == why.to_dict()
    assert content["largest"][0]["bytes"] == why.largest[0][0].size_bytes
    assert [one["name"] for one in content["changes"]] == [one.name for one in why.changes]


def test_a_recipe_that_nothing_improves_says_so(why):
    why = dataclasses.replace(why, changes=[])
    assert str(why).endswith("none; fw plan searches among whole recipes")
    assert why.sentence.endswith("Cheapest changes: none; ask fw plan.")


@pytest.mark.slow
def test_the_logits_of_a_long_sequence_are_the_largest_and_chunks_of_the_loss_come_first():
    task = {"name": "text", "model": "llama-3-8b", "corpus": "english", "seq_len": 8192}
    optimizer = {"name": "adamw", "lr": 1e-5}
    content = {"task": task, "optimizer": optimizer, "steps": 2, "micro_batch_size": 1, "precision": "bf16"}
    recipe = Recipe.parse(content, where="recipe")
    why = explain(recipe, Target.of("120GB", "h200"))
    assert why.largest_tensor.shape == (8192, 128256)
    assert "The largest tensor alone: 3.91 GiB activations: 8192x128256 " in str(why)
    first = why.changes[0]
    assert first.is_exact and "loss" in first.name and "chunks" in first.name


def test_a_method_without_options_as_yaml_may_write_it_is_one_with_defaults(small):
    recipes = [Recipe.parse({**small.to_dict(), "methods": [entry]}) for entry in ("mst", {"mst": None}, {"mst": {}})]
    ways = [_possible(one) for one in recipes]
    assert ways[0] == ways[1] == ways[2] and "checkpointing" in [name for name, _, _ in ways[0]]
