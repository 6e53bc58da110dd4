import pytest
import torch
from torch import nn

from featherweight.errors import ConfigError
from featherweight.optim import build_optimizer, optimizers, own_optimizer, parse_optimizer


@pytest.fixture
def rprop(monkeypatch):
    monkeypatch.setattr(optimizers, "_entries", dict(optimizers._entries))
    optimizers.register("rprop", own_optimizer(torch.optim.Rprop))


def test_the_arguments_of_a_constructor_are_strict_keys_and_the_steps_are_its_own(rprop):
    config = parse_optimizer({"name": "rprop", "lr": 0.05, "etas": [0.4, 1.1]})
    with pytest.raises(ConfigError, match="stepsizes"):
        parse_optimizer({"name": "rprop", "stepsizes": 3})
    torch.manual_seed(0)
    ours, plain = nn.Linear(3, 2), nn.Linear(3, 2)
    plain.load_state_dict(ours.state_dict())
    one = build_optimizer(ours, config)
    other = torch.optim.Rprop(plain.parameters(), lr=0.05, etas=(0.4, 1.1))
    for _ in range(3):
        for model, optimizer in ((ours, one), (plain, other)):
            optimizer.zero_grad()
            model(torch.ones(1, 3)).square().sum().backward()
            optimizer.step()
    assert torch.equal(ours.weight, plain.weight)
    assert one.gradient_bytes() == 4 * 8 and one.state_bytes() is None and isinstance(one, torch.optim.Rprop)


def test_an_argument_that_means_something_else_in_recipes_is_refused():
    class Odd(torch.optim.Optimizer):
        def __init__(self, params, lr=0.1, clip=1.0):
            super().__init__(params, {"lr": lr})

    with pytest.raises(ConfigError, match="Odd has the argument clip, which means something else"):
        own_optimizer(Odd)
