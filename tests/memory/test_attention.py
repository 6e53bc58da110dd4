import pytest
import torch
from torch.nn import functional as F

from featherweight.memory.simulate import simulation
from featherweight.simulated import SimulatedDevice


def attended(dtypes, autocast, mask=None):
    query, key, value = (
        torch.zeros(1, heads, 8, 16, dtype=dtype, requires_grad=True)
        for heads, dtype in zip((4, 2, 2), dtypes, strict=True)
    )
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        result = F.scaled_dot_product_attention(query, key, value, mask, is_causal=mask is None, enable_gqa=True)
    result.float().sum().backward()
    return result.dtype, [one.grad.dtype for one in (query, key, value)]


# Mutation: without the cast, float32 queries keep their type, and grouped keys then take plain products.
@pytest.mark.parametrize("kind", ["cpu", "cuda"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("value", [torch.float32, torch.bfloat16])
def test_attention_under_autocast_has_the_types_of_torch(value, masked, kind):
    """Rotary embeddings leave queries and keys in float32, beside values in bfloat16."""
    dtypes = (torch.float32, torch.float32, value)
    expected = attended(dtypes, True, torch.zeros(8, 8) if masked else None)
    assert expected[0] == torch.bfloat16

    with simulation(SimulatedDevice(kind)):
        found = attended(dtypes, True, torch.zeros(8, 8) if masked else None)

    assert found == expected


def test_attention_without_autocast_keeps_its_types():
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        with simulation(SimulatedDevice("cuda")):
            assert attended((dtype,) * 3, False) == (dtype, [dtype] * 3)
