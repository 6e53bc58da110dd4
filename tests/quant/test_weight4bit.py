"""Statistics behind weights of four bits."""

import pytest
import torch
from torch import nn

from featherweight.quant.weight4bit import is_4bit, statistics_of


def test_an_ordinary_layer_has_none():
    layer = nn.Linear(4, 4)
    assert statistics_of(layer.weight) == {} and not is_4bit(layer) and not is_4bit(nn.ReLU())


@pytest.mark.parametrize("nested", [False, True])
def test_the_codes_are_decoded_by_what_is_found(nested):
    bnb = pytest.importorskip("bitsandbytes", exc_type=ImportError)
    layer = bnb.nn.Linear4bit(64, 64, bias=False, quant_type="nf4", compress_statistics=nested).to("cpu")
    found = statistics_of(layer.weight)
    assert is_4bit(layer) and found.keys() >= {"absmax", "code"} and ("nested_absmax" in found) == nested
    if not nested:  # a code for each 4 bits, times the largest value of its block of 64
        packed = layer.weight.data.view(-1).int()
        codes = torch.stack([packed >> 4, packed & 15], 1).view(-1)
        values = found["code"][codes] * found["absmax"].repeat_interleave(64)
        expected = bnb.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
        torch.testing.assert_close(values.view(64, 64), expected.float())
