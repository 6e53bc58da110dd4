import pytest

from featherweight.planner import Target, changes
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
    assert changes(recipe, target, limit=1) == found[:1]
    before = estimate_memory(None, recipe, device="cpu").peak_bytes
    after = estimate_memory(None, recipe.override(found[0].overrides), device="cpu").peak_bytes
    assert before - after == found[0].saved_bytes


@pytest.mark.slow
def test_the_logits_of_a_long_sequence_are_the_largest_and_chunks_of_the_loss_come_first():
    task = {"name": "text", "model": "llama-3-8b", "corpus": "english", "seq_len": 8192}
    optimizer = {"name": "adamw", "lr": 1e-5}
    content = {"task": task, "optimizer": optimizer, "steps": 2, "micro_batch_size": 1, "precision": "bf16"}
    recipe = Recipe.parse(content, where="recipe")
    estimate = estimate_memory(None, recipe)
    alive = estimate.timeline.alive_at(estimate.timeline.peak().index)
    largest = max((one for one, _ in alive), key=lambda one: one.size_bytes)
    assert 128256 in largest.shape and largest.shape != (128256, 4096)
    first = changes(recipe, Target.of("120GB", "h200"))[0]
    assert first.is_exact and "loss" in first.name and "chunks" in first.name
