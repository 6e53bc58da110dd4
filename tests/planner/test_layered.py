"""A model, a device and a host: which recipes fit both, and where the weights wait."""

import pytest

from featherweight.planner.answers import answer
from featherweight.planner.host import PROCESS_BYTES
from featherweight.planner.need import need_of
from featherweight.planner.target import Target

MODEL = {
    "model_type": "llama",
    "hidden_size": 512,
    "intermediate_size": 1376,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "vocab_size": 260,
    "max_position_embeddings": 8192,
}
ADAMW = ["bf16-weights", "8-bit-states", "low-rank", "int8-weights", "few-parameters"]
"""What is excluded where only float32 AdamW may stay."""


def asked(budget, host="8GB", **options):
    options = {"device": "rtx4090", "seq_len": 512, "exclude": ADAMW, **options}
    return answer(MODEL, budget, host_memory=host, **options)


def just_below(row):
    """A budget that lacks a five-hundredth of a row's tensors: what the allocator likes to keep is not what counts."""
    tensors = row.need.allocated_bytes + row.need.workspace_bytes + row.need.context_bytes
    return int(0.998 * tensors / (1 - Target.of("24GiB", "rtx4090").margin))


def test_weights_and_then_states_wait_on_the_host_where_the_device_does_not_hold_them():
    easy = asked("24GiB")
    (row,) = easy.plan.rows
    schedule = row.recipe.schedule
    assert (schedule.order, schedule.inputs, schedule.weights, schedule.states) == ("layer", "host", "device", "device")
    assert row.recipe.optimizer["layerwise"] is True
    assert easy.host.weights_bytes == 0 and easy.to_dict()["host_bytes"] == easy.host.total_bytes

    assert "of the host (GiB)" in str(easy.plan.report())

    (streamed,) = asked(just_below(row)).plan.rows
    assert (streamed.recipe.schedule.weights, streamed.recipe.schedule.states) == ("host", "device")
    assert streamed.host.weights_bytes > 0 == streamed.host.states_bytes
    target = Target.of(just_below(row), "rtx4090")
    assert streamed.need == need_of(streamed.estimate, target) and streamed.need.fits(target)

    (smallest,) = asked(just_below(streamed)).plan.rows
    assert (smallest.recipe.schedule.weights, smallest.recipe.schedule.states) == ("host", "host")
    assert smallest.host.states_bytes > smallest.host.weights_bytes == streamed.host.weights_bytes


@pytest.mark.slow  # five seconds of the processor: four families
def test_the_few_parameters_of_adapters_go_layer_by_layer_too():
    tags = [tag for tag in ADAMW if tag not in ("few-parameters", "bf16-weights")]
    found = asked("24GiB", exclude=tags, limit=4)
    assert [row.family for row in found.plan.rows] == ["AdamW, float32 weights", "AdamW", "S2FT", "LoRA, rank 16"]
    assert not found.plan.refused and found.plan.rows[2].recipe.optimizer["layerwise"] is True


@pytest.mark.slow  # twenty seconds of the processor: some ten simulations
def test_questions_about_a_recipe_that_neither_budget_holds_are_answered_all_the_same():
    # Mutations: a question that the host's refusal ends; --why that is left out beside a second budget.
    recipe = asked("24GiB").plan.best.recipe.override(["task.seq_len=1536"])
    host = PROCESS_BYTES + 5 * 512 * 4 * 1024  # layer inputs of 1024 tokens
    found = answer(None, "24GiB", device="rtx4090", recipe=recipe, host_memory=host, unknown="max_seq_len", why=True)
    assert not found.plan.rows and "1,024 tokens of a row fit" in found.plan.refused["the recipe as it stands"]
    assert found.solution.value == 1024 and found.reasons.name == "the recipe as it stands"


def test_what_neither_holds_is_refused_with_the_memory_that_lacks():
    nothing = asked("24GiB", host="4GiB")
    assert not nothing.plan.rows and nothing.plan.nearest.host == nothing.host
    assert "of the host's 4.00 GiB" in nothing.plan.refused["AdamW, float32 weights"]
    small = asked("540MiB", unknown="max_seq_len")
    assert not small.plan.rows and small.solution is None and "already needs" in small.unsolvable
