"""The work of a step, operator by operator."""

import pytest
import torch
from simulated_decoders import CPU, attention_bytes, decoder, train_decoder
from torch.utils.flop_counter import FlopCounterMode

from featherweight.memory.cost import StepCost
from featherweight.memory.simulate import SimulatedTensors, simulation
from featherweight.simulated import counting_only
from featherweight.tiles import tiles


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_products_of_a_step_are_those_that_torch_counts_on_the_real_model(attention):
    token_ids = torch.zeros((2, 64), dtype=torch.int64)
    model = decoder("llama", attn_implementation=attention)
    with FlopCounterMode(display=False) as counter:
        train_decoder(model, torch.optim.SGD(model.parameters()), token_ids)
    cost = StepCost()
    with simulation(CPU, cost):
        model = decoder("llama", attn_implementation=attention)
        cost.clear()
        train_decoder(model, torch.optim.SGD(model.parameters()), torch.zeros((2, 64), dtype=torch.int64))
    assert dict(cost.flops) == {"float32": counter.get_total_flops()}
    weights = sum(weight.nbytes for weight in model.parameters())
    assert cost.moved_bytes > 3 * weights  # SGD alone reads weights and gradients and writes weights


def test_attention_of_a_gpu_costs_two_products_forward_and_five_backward():
    cost = StepCost()
    B, H, L, D = 2, 4, 128, 64
    attention_bytes(H, 2, L, torch.bfloat16, cost=cost)
    one_product = 2 * B * H * L * L * D
    assert dict(cost.flops) == {"bfloat16": 7 * one_product // 2}  # causal: half of the scores


def test_elementwise_work_counts_bytes_read_and_written_and_views_cost_nothing():
    cost = StepCost()
    with simulation(CPU, cost):
        x = torch.zeros(100, 100)
        cost.clear()
        y = x.t()[:50].unsqueeze(0)
        assert (cost.moved_bytes, cost.launches) == (0, 0)
        y = x + x
        assert (cost.moved_bytes, cost.launches) == (3 * 40_000, 1)
        y.mul_(x)
        assert (cost.moved_bytes, cost.launches) == (3 * 40_000 + 3 * 40_000, 2)
    assert not cost.flops


def work_in_tiles():
    x = torch.zeros(1000, 16)
    y = torch.empty_like(x)
    for start, stop in tiles(1000, 64):
        torch.mm(x[start:stop], torch.zeros(16, 16), out=y[start:stop])
        y[start:stop].add_(1.0)
    return y


def test_a_few_tiles_cost_what_all_of_them_do():
    costs = [StepCost(), StepCost()]
    with simulation(CPU, costs[0]):
        work_in_tiles()
    with SimulatedTensors(costs[1]):  # without a simulated device tiles are not left out
        work_in_tiles()
    assert costs[0] == costs[1]
    assert costs[0].flops["float32"] == 2 * 1000 * 16 * 16
    with counting_only(CPU):
        assert len(list(tiles(1000, 64))) == 3
