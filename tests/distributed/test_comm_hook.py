"""What of a gradient has to travel: the core, or the whole at a refresh and where more than the core is used."""

import pytest
import torch

import featherweight as fw
from featherweight.distributed.comm_hook import average_gradients_, core_hook, piece_of
from featherweight.errors import ConfigError
from featherweight.optim.reduce import LocalReducer


def trained(kind="GaLoreAdamW", **options):
    weight = torch.nn.Parameter(torch.randn(12, 20, generator=torch.Generator().manual_seed(0)))
    optimizer = getattr(fw.optim, kind)([{"params": [weight], "rank": 3, "update_proj_gap": 2, **options}], lr=1e-2)
    return weight, optimizer


def step(weight, optimizer):
    weight.grad = torch.randn(12, 20, generator=torch.Generator().manual_seed(int(weight.sum() * 1000)))
    optimizer.step()


def shapes(weight, optimizer):
    return [tuple(tensor.shape) for tensor in piece_of(optimizer, weight, torch.ones(12, 20)).tensors]


def test_a_core_travels_but_at_a_refresh():
    weight, optimizer = trained()
    seen = [shapes(weight, optimizer)]
    for _ in range(4):
        step(weight, optimizer)
        seen.append(shapes(weight, optimizer))
    assert seen == [[(12, 20)], [(3, 20)], [(12, 20)], [(3, 20)], [(12, 20)]]


@pytest.mark.parametrize("kind", ["Fira", "Apollo", "AdamW"])
def test_optimizers_that_use_more_than_the_core_send_the_gradient(kind):
    weight, optimizer = trained(kind) if kind != "AdamW" else (None, None)
    if kind == "AdamW":
        weight = torch.nn.Parameter(torch.ones(12, 20))
        optimizer = fw.optim.AdamW([weight], lr=1e-2)
    step(weight, optimizer)
    assert shapes(weight, optimizer) == [(12, 20)]


def test_what_comes_back_gives_the_same_step_as_the_gradient():
    (one, first), (two, second) = trained(), trained()
    for _ in range(3):
        for weight, optimizer in ((one, first), (two, second)):
            weight.grad = torch.randn(12, 20, generator=torch.Generator().manual_seed(5))
            if optimizer is second:
                average_gradients_(optimizer, LocalReducer())
            optimizer.step()
    # P P^T G in place of G: the core is the same to rounding, which Adam may turn into a step where it is near zero.
    torch.testing.assert_close(one, two, rtol=0, atol=1e-5)


def test_a_layer_wise_optimizer_is_refused():
    model = torch.nn.Sequential(torch.nn.Linear(8, 8))
    optimizer = fw.optim.GaLoreAdamW(model.parameters(), rank=2)
    with fw.optim.layerwise(model, optimizer), pytest.raises(ConfigError, match="GaLoreAdamW, layer-wise has no cores"):
        core_hook(optimizer)
