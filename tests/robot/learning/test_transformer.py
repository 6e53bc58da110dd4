"""ACT's blocks against PyTorch's own."""

import torch
from torch import nn

from featherweight.robot.learning.transformer import Attention, DecoderLayer, EncoderLayer


def test_attention_equals_that_of_pytorch():
    torch.manual_seed(0)
    own, theirs = Attention(16, 4, 0.0), nn.MultiheadAttention(16, 4, batch_first=True)
    with torch.no_grad():
        projs = (own.q_proj, own.k_proj, own.v_proj)
        theirs.in_proj_weight.copy_(torch.cat([proj.weight for proj in projs]))
        theirs.in_proj_bias.copy_(torch.cat([proj.bias for proj in projs]))
        theirs.out_proj.load_state_dict(own.o_proj.state_dict())
    query, key, value = (torch.randn(2, n, 16) for n in (3, 5, 5))
    torch.testing.assert_close(own(query, key, value), theirs(query, key, value)[0])


def test_without_positions_the_order_of_tokens_does_not_matter_and_with_them_it_does():
    torch.manual_seed(0)
    layer, x = EncoderLayer(8, 2, 16, 0.0), torch.randn(1, 4, 8)
    order = torch.tensor([2, 0, 3, 1])
    nowhere, places = torch.zeros(4, 8), torch.randn(4, 8)
    torch.testing.assert_close(layer(x[:, order], nowhere), layer(x, nowhere)[:, order])
    assert not torch.allclose(layer(x[:, order], places), layer(x, places)[:, order])


def test_a_decoder_s_queries_differ_by_their_positions_alone():
    torch.manual_seed(0)
    layer = DecoderLayer(8, 2, 16, 0.0)
    memory, place = torch.randn(1, 4, 8), torch.zeros(4, 8)
    out = layer(torch.zeros(1, 3, 8), torch.zeros(3, 8), memory, place)
    torch.testing.assert_close(out[:, 0], out[:, 1])
    out = layer(torch.zeros(1, 3, 8), torch.randn(3, 8), memory, place)
    assert not torch.allclose(out[:, 0], out[:, 1])
