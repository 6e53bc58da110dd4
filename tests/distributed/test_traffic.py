"""Traffic by formula: the tables of docs/distributed.md, which are arithmetic."""

import re
from pathlib import Path

import pytest

from featherweight.distributed.traffic import ddp_bytes, fsdp2_bytes, sizes_of

PAGE = Path(__file__).parents[2] / "docs" / "distributed.md"


def llama(hidden, feed_forward, layers, kv, vocabulary):
    layer = [(hidden, hidden), (kv, hidden), (kv, hidden), (hidden, hidden)]
    layer += [(feed_forward, hidden), (feed_forward, hidden), (hidden, feed_forward)]
    return layer * layers, 2 * vocabulary * hidden


MODELS = {"7B": llama(4096, 11008, 32, 4096, 32000), "70B": llama(8192, 28672, 80, 1024, 32000)}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("rank", [128, 1024])
@pytest.mark.parametrize("processes", [8, 64, 1024])
def test_the_tables_of_the_page_are_what_the_formulas_give(model, rank, processes):
    matrices, others = MODELS[model]
    whole, cores = (sizes_of(matrices, others, rank=one) for one in (None, rank))
    right = sizes_of(matrices, others, rank=rank, proj_type="right")
    # Codes of one byte and a float32 scale for each 256 of them; embedding and head stay at two bytes.
    int8 = ((1 + 4 / 256) * right.projected + 2 * right.others) / (right.projected + right.others)
    found = [
        ddp_bytes(whole, processes, other_bytes=2),
        ddp_bytes(cores, processes, other_bytes=2),
        fsdp2_bytes(whole, processes),
        fsdp2_bytes(right, processes),
        fsdp2_bytes(right, processes, sums_cores=True),
        fsdp2_bytes(right, processes, sums_cores=True, weight_bytes=int8),
    ]
    row = f"| {model} | {rank} | {processes} | " + " | ".join(f"{one / 1e9:.1f}" for one in found) + " |"
    assert row in PAGE.read_text(), row


def test_right_bases_add_nothing_to_what_fsdp2_sends():
    matrices, others = MODELS["7B"]
    right = sizes_of(matrices, others, rank=128, proj_type="right")
    assert fsdp2_bytes(right, 8) == fsdp2_bytes(sizes_of(matrices, others, rank=None), 8)


def test_cores_of_7b_at_rank_128_are_a_thirty_second_of_its_weights():
    sizes = sizes_of(*MODELS["7B"], rank=128)
    assert sizes.cores / sizes.projected == pytest.approx(0.031, abs=0.0005)
    assert len(re.findall(r"2\.7 GB a step", PAGE.read_text())) == 1
