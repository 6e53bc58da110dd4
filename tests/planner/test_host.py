"""The second budget: bytes on the host and over the link are those of the simulated step, and answers obey both."""

import pytest

from featherweight.errors import ConfigError
from featherweight.memory.tracker import StorageTracker
from featherweight.planner.answers import answer
from featherweight.planner.host import PROCESS_BYTES, host_need, require_host
from featherweight.planner.solve import solve
from featherweight.training.estimate import estimate_memory
from featherweight.training.loop import Loop
from featherweight.training.recipe import Recipe

MODEL = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 260,
    "max_position_embeddings": 8192,
}
HOST = {"order": "layer", "chunk_tokens": 256, "inputs": "host", "weights": "host"}


def recipe(seq_len=1024, layers=3, **schedule):
    task = {"name": "text", "model": {**MODEL, "num_hidden_layers": layers}, "tokenizer": "bytes", "weights": "random"}
    task |= {"seq_len": seq_len, "max_train_tokens": 2 * seq_len, "max_held_out_tokens": 2 * seq_len}
    values = {"task": task, "optimizer": {"name": "adamw", "layerwise": True}, "steps": 4, "micro_batch_size": 1}
    return Recipe.parse({**values, "memory_steps": [], "schedule": {**HOST, **schedule}}, where="recipe")


def test_traffic_by_formula_is_what_the_simulated_step_copies():
    one = recipe()
    need = host_need(one)
    assert need.read_bytes + need.written_bytes == estimate_memory(None, one, device="cuda").cost.host_bytes
    assert need.inputs_bytes == 4 * 1024 * 64 * 4


def test_attention_that_is_kept_is_counted_on_the_host():
    plain, kept = host_need(recipe()), host_need(recipe(attention="keep"))
    assert kept.inputs_bytes - plain.inputs_bytes == 3 * 1024 * 4 * (64 + 4)  # layers, tokens, output and log-sum-exp
    estimate = estimate_memory(None, recipe(attention="keep"), device="cuda")
    assert kept.read_bytes + kept.written_bytes == estimate.cost.host_bytes


def test_tiles_of_attention_that_stand_for_others_change_no_byte_and_no_flop(monkeypatch):
    # Mutation: a tile that is not counted as often as it stands for others.
    from featherweight.nn import streamed_attention

    monkeypatch.setattr(streamed_attention, "SCORE_ELEMENTS", 4 * 256 * 40)  # 40 queries of 4 heads: 7 tiles of a chunk
    found = estimate_memory(None, recipe(768, layers=2), device="cuda")
    monkeypatch.setattr(
        streamed_attention, "tiles", lambda count, size: ((i, min(i + size, count)) for i in range(0, count, size))
    )
    whole = estimate_memory(None, recipe(768, layers=2), device="cuda")
    assert (found.peak_bytes, found.cost) == (whole.peak_bytes, whole.cost)
    assert len(found.timeline.rounded(1).events) < len(whole.timeline.rounded(1).events)


def test_states_on_the_host_go_in_and_out_once_and_take_nothing_of_the_device():
    kept, waiting = recipe(), recipe(states="host")
    # Nine weights of each layer, embedding and head count their steps, on the CPU.
    need, counters = host_need(waiting), 8 * (3 * 9 + 2)
    layer = 64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 160 + 2 * 64
    assert need.states_bytes - counters == 2 * 4 * (3 * layer + 2 * 260 * 64)
    estimate = estimate_memory(None, waiting, device="cuda")
    assert need.read_bytes + need.written_bytes - 2 * counters == estimate.cost.host_bytes
    saved = estimate_memory(None, kept, device="cuda").peak_bytes - estimate.peak_bytes
    assert saved > 0.6 * need.states_bytes  # one layer's are there at the peak


def test_bytes_of_many_layers_follow_from_few():
    # Mutation: what does not grow with the layers, such as the turn, counted for each.
    few, many = host_need(recipe(layers=3)), host_need(recipe(layers=7))
    vocabulary = 2 * 260 * 64 * 4  # embedding and head, whatever the depth
    layer = (few.weights_bytes - vocabulary) // 3
    assert many.weights_bytes == 7 * layer + vocabulary
    assert many.read_bytes - few.read_bytes == 4 * (2 * layer + (3 * 64 * 4 * 1024 + 64 * 4 * 768))


@pytest.mark.parametrize("order", ["layer", "chunk"])
def test_the_simulated_peak_of_a_step_in_chunks_is_the_tracked_one(order):
    # On a CPU, where the tracker can see it; to the byte.
    one = recipe(order=order, inputs="device", weights="device")
    loop = Loop(one)
    with StorageTracker(loop.model, loop.optimizer) as tracker:
        loop.step()
        loop.step()
    assert estimate_memory(None, one, device="cpu").peak_bytes == tracker.peak_bytes


def test_a_step_chunk_by_chunk_of_many_layers_follows_from_few_and_its_sums_are_counted():
    # Mutation: a formula of gradients that knows those of one parameter alone.
    deep = recipe(512, layers=5, order="chunk", inputs="device", weights="device")
    found, whole = (estimate_memory(None, deep, device="cpu", whole=whole) for whole in (False, True))
    assert found.peak_bytes == whole.peak_bytes
    assert found.predicted["gradients"] > 0.9 * found.predicted["weights"]


@pytest.mark.slow  # 15 s of the processor: two searches of the longest row
def test_the_longest_row_obeys_both_budgets():
    one = recipe()
    budget = PROCESS_BYTES + host_need(one).weights_bytes + 4 * 1920 * 64 * 4
    found = solve("max_seq_len", None, one, "24GiB", device="rtx4090", host_memory=budget)
    assert found.value == 1920
    assert found.host.total_bytes <= budget
    with pytest.raises(ConfigError, match=r"host-memory=0\.0 GiB is less than .*not even weights and states fit"):
        solve("max_seq_len", None, one, "24GiB", device="rtx4090", host_memory="1MB")
    with pytest.raises(ConfigError, match="1,920 tokens of a row fit. Lower task.seq_len to 1920"):
        require_host(recipe(seq_len=2048), budget)


def test_a_recipe_that_keeps_nothing_on_the_host_needs_none():
    need = host_need(recipe(order="batch", chunk_tokens=None, inputs="device", weights="device"))
    assert (need.inputs_bytes, need.weights_bytes, need.read_bytes, need.written_bytes) == (0, 0, 0, 0)


def test_the_command_judges_a_recipe_by_two_budgets_and_says_what_is_missing(tmp_path):
    path = tmp_path / "long.yaml"
    recipe().to_file(path)
    found = answer(None, "24GiB", recipe=path, device="rtx4090", host_memory="8GB")
    assert found.to_dict()["host"]["inputs_bytes"] == 4 * 1024 * 64 * 4
    assert any("over the link in a step" in one for one in found.plan.assumptions)
    with pytest.raises(
        ConfigError, match="host-memory=8GB with schedule.order=batch; expected a model, or a recipe whose steps"
    ):
        answer(
            None,
            "24GiB",
            recipe=recipe(order="batch", chunk_tokens=None, inputs="device", weights="device"),
            device="rtx4090",
            host_memory="8GB",
        )
