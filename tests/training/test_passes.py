"""Recipes whose steps go layer by layer: the numbers of ordinary steps, resume, progress, and what is refused."""

import math
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from featherweight.errors import ConfigError, NumericsError
from featherweight.training import passes
from featherweight.training.checkpoint import Checkpoints
from featherweight.training.events import Callback
from featherweight.training.interrupt import StopRequest
from featherweight.training.loop import Loop
from featherweight.training.recipe import Recipe
from featherweight.training.resume import resume_conflicts

MODEL = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 260,
    "initializer_range": 0.1,
    "max_position_embeddings": 256,
}
LAYERS = {"order": "layer", "chunk_tokens": 20}
GALORE = {"name": "galore", "rank": 4, "lr": 2e-2, "update_proj_gap": 3, "layerwise": True}


def recipe(**changes):
    task = {"name": "text", "model": MODEL, "tokenizer": "bytes", "weights": "random", "seq_len": 48}
    task |= {"max_train_tokens": 2000, "max_held_out_tokens": 200}
    values = {"task": task, "optimizer": GALORE, "steps": 4, "micro_batch_size": 2, "accumulation_steps": 2}
    values |= {"memory_steps": [], "checkpoint_at_end": False, "evaluate_at_start": False, "schedule": LAYERS}
    return Recipe.parse({**values, **changes}, where="recipe")


def losses_of(loop, steps=4):
    return [loop.step()["loss"] for _ in range(steps)]


@pytest.mark.parametrize(("order", "layerwise"), [("layer", False), ("layer", True), ("chunk", True), ("chunk", False)])
def test_a_recipe_learns_layer_by_layer_and_chunk_by_chunk_as_batch_by_batch(order, layerwise):
    # float32 sums in another order, over four steps of Adam. Mutation: a loss divided by another count, a micro-batch
    # that is left out, a step for each micro-batch.
    optimizer = {"name": "adamw", "lr": 1e-2, "layerwise": layerwise}
    by_layer = Loop(recipe(optimizer=optimizer, schedule={**LAYERS, "order": order}))
    by_batch = Loop(recipe(optimizer=optimizer, schedule={}))
    found, expected = losses_of(by_layer), losses_of(by_batch)
    assert found == pytest.approx(expected, rel=2e-5)
    assert by_layer.progress.items == by_batch.progress.items
    assert by_layer.evaluate()["held_out_loss"] == pytest.approx(by_batch.evaluate()["held_out_loss"], rel=2e-5)


def test_a_run_with_weights_on_the_host_resumes_from_its_middle_bit_by_bit(tmp_path):
    schedule = {**LAYERS, "inputs": "host", "weights": "host"}
    whole = Loop(recipe(schedule=schedule))
    expected = losses_of(whole)
    begun = Loop(recipe(schedule=schedule))
    losses_of(begun, 2)
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(2, begun.weights(), begun.state_dict(), begun.recipe.to_dict())
    # The card it goes on with is larger: weights wait on the device.
    resumed = Loop(recipe(schedule=LAYERS))
    resumed.resume(checkpoints.latest())
    assert losses_of(resumed, 2) == expected[2:]
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], weight), name


def test_an_older_recipe_without_an_order_goes_on():
    old = recipe(schedule={}).to_dict()
    for key in ("order", "chunk_tokens", "inputs", "weights"):
        del old["schedule"][key]
    assert resume_conflicts(old, recipe(schedule={}).to_dict()) == []
    assert resume_conflicts(old, recipe().to_dict()) == [
        "schedule.order: batch -> layer",
        "schedule.chunk_tokens: None -> 20",
    ]


class Listener(Callback):
    def __init__(self):
        self.told = []

    def on_progress(self, event):
        self.told.append((event.step, event.share, event.notice))


def test_a_run_tells_how_far_a_step_has_come(tmp_path, monkeypatch):
    monkeypatch.setattr(passes, "SECONDS_BETWEEN_WORDS", 0.0)
    listener = Listener()
    Loop(recipe(steps=1)).run([listener], Checkpoints(tmp_path, keep=1), StopRequest())
    assert listener.told[0][2] == "forward, layer 1 of 2, chunk 1 of 3"
    assert listener.told[-1] == (0, 1.0, "backward, layer 1 of 2, chunk 1 of 3")


@pytest.mark.parametrize("weights", ["device", "host"])
def test_a_loss_that_is_not_finite_leaves_weights_and_state_as_they_were(weights):
    loop = Loop(recipe(schedule={**LAYERS, "weights": weights}))
    loop.step()
    with torch.no_grad():
        loop.model.model.norm.weight[0] = math.nan
    before = {name: one.clone() for name, one in loop.model.state_dict().items()}
    with pytest.raises(NumericsError, match="loss=nan is not finite in step 2"):
        loop.step()
    for name, weight in loop.model.state_dict().items():
        torch.testing.assert_close(weight, before[name], rtol=0, atol=0, equal_nan=True)
    with torch.no_grad():
        loop.model.model.norm.weight[0] = 1.0
    loop.step()


REFUSED = {
    "chunk_tokens=64 is longer than the rows of task.seq_len=48": {"schedule": {"order": "layer", "chunk_tokens": 64}},
    "weights='host' without layer-wise updates": {
        "schedule": {**LAYERS, "weights": "host"},
        "optimizer": {"name": "adamw"},
    },
    "weights=host has no effect under order=batch": {"schedule": {"weights": "host"}},
    "inputs=host has no effect under order=chunk": {"schedule": {**LAYERS, "order": "chunk", "inputs": "host"}},
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_cannot_go_layer_by_layer_is_refused_before_the_first_step(message):
    with pytest.raises(ConfigError, match=message):
        Loop(recipe(**REFUSED[message]))


def test_a_task_without_a_next_token_is_refused():
    task = {"name": "regression"}
    with pytest.raises(ConfigError, match="schedule.order=layer beside task=regression.*Set schedule.order=batch"):
        Loop(recipe(task=task, schedule={"order": "layer"}, optimizer={"name": "adamw"}))


@pytest.mark.slow
def test_a_process_killed_in_the_middle_of_a_step_resumes_bit_by_bit(tmp_path):
    # Some layers of that step have moved, others not: the checkpoint before it is what counts.
    script = str(Path(__file__).parents[1] / "reference" / "kill_in_layer_step.py")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run([sys.executable, script, str(whole)], check=True, stdout=subprocess.DEVNULL)
    with subprocess.Popen([sys.executable, script, str(killed)], stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if line.startswith("3 backward, layer 2"):
                process.kill()
    assert process.returncode == -signal.SIGKILL
    subprocess.run([sys.executable, script, str(killed), "--resume"], check=True)
    first, second = (load_file(folder / "model" / "model.safetensors") for folder in (whole, killed))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
