"""A decoder so small that a whole search takes seconds, and its plan for a CPU."""

from pathlib import Path

import pytest

from featherweight.planner import Plan, plan

TINY = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 512,
}


@pytest.fixture(scope="session")
def tiny() -> dict:
    """Return the configuration of the decoder; the tokenizer is that of bytes."""
    return dict(TINY)


@pytest.fixture(scope="session")
def tiny_plan(tiny) -> Plan:
    """Return the plan without low rank and int8 weights: 4 rows of 64 tokens a step in 1 GB of a CPU."""
    return plan(tiny, "1GB", device="cpu", seq_len=64, tokens_per_step=256, exclude=["low-rank", "int8-weights"])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep these tests in one worker of pytest-xdist: several look at one plan."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.xdist_group("planner"))
