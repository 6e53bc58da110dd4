"""How many tokens are handled at once."""

import numpy as np
import pytest
import torch

from featherweight.errors import ConfigError
from featherweight.memory.simulate import simulation
from featherweight.nn.chunk_size import budget_bytes, check_chunk_size, head_chunk_size, mlp_chunk_size
from featherweight.simulated import SimulatedDevice

CPU = torch.device("cpu")


@pytest.mark.parametrize("vocab_size", [100, 32_000, 50_257, 152_064, 10**7])
def test_the_logits_of_a_chunk_fit_the_budget_down_to_128_tokens(vocab_size):
    size = head_chunk_size(10**6, vocab_size, CPU)
    assert size == 128 or 6 * vocab_size * size <= budget_bytes(CPU)
    assert size & (size - 1) == 0 and 12 * vocab_size * size > budget_bytes(CPU)


@pytest.mark.parametrize("tokens", [0, 1, 5, 127])
def test_a_chunk_has_no_more_tokens_than_there_are_and_at_least_one(tokens):
    assert head_chunk_size(tokens, 32_000, CPU) == max(tokens, 1)


def test_a_feed_forward_layer_is_cut_into_four_chunks_or_not_at_all():
    size = mlp_chunk_size(10**6, 14_336, CPU)
    assert 256 <= size <= 512
    assert mlp_chunk_size(4 * size, 14_336, CPU) == size
    assert mlp_chunk_size(4 * size - 1, 14_336, CPU) == 4 * size - 1


@pytest.mark.parametrize(("gib", "mib"), [(2, 64), (24, 245.76), (80, 819.2), (200, 1024)])
def test_the_budget_of_a_gpu_is_a_hundredth_of_its_memory_within_limits(gib, mib):
    with simulation(SimulatedDevice("cuda", memory_bytes=gib * 2**30)):
        assert budget_bytes(torch.device("cuda")) == int(mib * 2**20)


@pytest.mark.parametrize("chunk_size", ["auto", 1, 4096, np.int64(8)])
def test_whole_numbers_and_auto_are_sizes(chunk_size):
    check_chunk_size("here", chunk_size)


@pytest.mark.parametrize("chunk_size", [0, -1, 2.0, True, "8", None])
def test_anything_else_is_named(chunk_size):
    with pytest.raises(ConfigError, match="here: chunk_size=.* is no number of tokens"):
        check_chunk_size("here", chunk_size)
