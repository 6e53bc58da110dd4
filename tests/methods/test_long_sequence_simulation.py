"""Llama-3-8B in bfloat16 on one card of 78 GiB, by simulation: what fits, and what bounds it."""

import importlib.util
from pathlib import Path

import pytest
import torch

spec = importlib.util.spec_from_file_location(
    "long_sequence_simulation", Path(__file__).parents[2] / "benchmarks" / "long_sequence_simulation.py"
)
simulation = importlib.util.module_from_spec(spec)
spec.loader.exec_module(simulation)

GIB = 2**30
# AdamW with moments in bfloat16.
STATE = 4 * simulation.numel(simulation.LLAMA_3_8B)
SETUPS = {setup.name: setup for setup in simulation.setups(4096, 1024)}


def peak_gib(name, tokens, state=STATE):
    return (simulation.simulated_peak(simulation.LLAMA_3_8B, torch.bfloat16, SETUPS[name], tokens) + state) / GIB


# The lengths at which another simulator, of another tracker, reached 78 GiB with the same recipes.
@pytest.mark.parametrize(
    ("name", "tokens", "state"),
    [
        ("stock", 4400, STATE),
        ("stock", 8500, 0),
        ("stock + checkpointing", 18_800, STATE),
        ("stock + checkpointing", 37_000, 0),
    ],
)
def test_plain_recipes_reach_78_gib_where_they_were_found_to(name, tokens, state):
    assert peak_gib(name, tokens, state) == pytest.approx(78, rel=0.03)


@pytest.mark.slow  # 20 to 40 s each
@pytest.mark.parametrize(
    ("name", "tokens"),
    [
        ("loss in chunks + checkpointing", 56_700),
        ("MsT + checkpointing", 72_000),
        ("MsT + checkpointing, layer-wise", 82_600),
    ],
)
def test_chunked_recipes_need_less_than_78_gib_where_others_need_all_of_it(name, tokens):
    assert peak_gib(name, tokens) < 78


@pytest.mark.parametrize("name", ["stock", "stock + checkpointing"])
def test_the_peak_is_a_straight_line_in_the_number_of_layers(name):
    layers = [
        simulation.peak_of_layers(
            {**simulation.LLAMA_3_8B, "num_hidden_layers": count}, torch.bfloat16, SETUPS[name], 4096
        )
        for count in (2, 3, 6)
    ]
    assert layers[2] - layers[1] == pytest.approx(3 * (layers[1] - layers[0]), rel=1e-3)


# One layer: its input, query, key, value, attention's result and the gradients of these, 56 KiB a token; with the
# input of the layer below, which is fetched ahead, 64. Mutation: float32 copies of norms for all tokens add 32.
@pytest.mark.slow  # 40 s
def test_a_token_costs_what_attention_of_one_layer_keeps_for_it():
    def per_token(name):
        short, long = (
            simulation.peak_of_layers(
                {**simulation.LLAMA_3_8B, "num_hidden_layers": 3}, torch.bfloat16, SETUPS[name], tokens
            )
            for tokens in (65_536, 131_072)
        )
        return (long - short) / 65_536 / 1024

    assert per_token("MsT tokenwise + offload") <= 66
    assert per_token("MsT + offload") >= 150
