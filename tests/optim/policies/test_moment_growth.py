import copy

import pytest
import torch
from torch import nn

import featherweight as fw
from featherweight.errors import ConfigError
from featherweight.optim.exchange import exchange_parameter
from featherweight.optim.policies.moment_growth import Growth, Rotation

OURS = {
    "adamw": lambda groups: fw.optim.AdamW(groups, lr=1e-2),
    "adamw_8bit": lambda groups: fw.optim.AdamW(groups, lr=1e-2, state_bits=8),
    "galore": lambda groups: fw.optim.GaLoreAdamW([{**g, "rank": 2} for g in groups], lr=1e-2),
    "galore too large a rank": lambda groups: fw.optim.GaLoreAdamW([{**g, "rank": 128} for g in groups], lr=1e-2),
    "galore_adafactor": lambda groups: fw.optim.GaLoreAdafactor([{**g, "rank": 128} for g in groups], lr=1e-2),
}
TORCH = {
    "sgd": lambda groups: torch.optim.SGD(groups, lr=1e-2, momentum=0.9),
    "torch adamw": lambda groups: torch.optim.AdamW(groups, lr=1e-2, amsgrad=True),
    "torch adafactor": lambda groups: torch.optim.Adafactor(groups, lr=1e-2),
    "adagrad": lambda groups: torch.optim.Adagrad(groups, lr=1e-2),
}


def trained(build, steps=3, shape=(80, 60)):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        parameters = [nn.Parameter(torch.randn(5)), nn.Parameter(torch.randn(*shape)), nn.Parameter(torch.randn(3))]
        optimizer = build([{"params": parameters[:1]}, {"params": parameters[1:], "weight_decay": 0.125}])
        for _ in range(steps):
            for parameter in parameters:
                parameter.grad = torch.randn_like(parameter)
            optimizer.step()
    return optimizer, parameters


def step(optimizer, parameters):
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("name", [*OURS, *TORCH])
def test_growth_keeps_old_slots_group_and_order(name, axis):
    optimizer, parameters = trained({**OURS, **TORCH}[name])
    old = parameters[1]
    before = copy.deepcopy(dict(optimizer.state[old]))
    size = old.shape[axis] + 7
    new = nn.Parameter(Growth(axis, size).linear(old.detach()))

    exchange_parameter(optimizer, old, new, Growth(axis, size))

    assert old not in optimizer.state and optimizer.param_groups[1]["params"][0] is new
    assert optimizer.param_groups[1]["weight_decay"] == 0.125
    assert len(optimizer.param_groups) == 2 and optimizer.param_groups[0]["params"] == parameters[:1]
    after = optimizer.state[new] if new in optimizer.state else {}
    if name in ("adamw_8bit", "galore"):
        # Codes are rounded anew; a projection to the old shape is dropped.
        assert bool(after) == (name == "adamw_8bit")
    else:
        assert after.keys() == before.keys()
        for key, value in before.items():
            if not torch.is_tensor(value) or value.ndim == 0:
                assert after[key] == value
                continue
            index = tuple(slice(0, n) for n in value.shape)
            assert torch.equal(after[key][index], value), key
            if value.shape == old.shape:
                assert after[key].shape == new.shape
                added = after[key].narrow(axis, old.shape[axis], 7)
                if key in ("exp_avg", "momentum_buffer"):
                    assert not added.any()
                else:
                    assert torch.equal(added, value.mean(axis, keepdim=True).expand_as(added))
    step(optimizer, [parameters[0], new, parameters[2]])  # every shape fits
    saved = copy.deepcopy(optimizer.state_dict())
    optimizer.load_state_dict(saved)
    step(optimizer, [parameters[0], new, parameters[2]])
    assert torch.isfinite(new).all()


def test_eight_bit_moments_follow_up_to_their_rounding():
    optimizer, parameters = trained(OURS["adamw_8bit"])
    exact, twins = trained(OURS["adamw"])
    for one, params in ((optimizer, parameters), (exact, twins)):
        new = nn.Parameter(Growth(0, 90).linear(params[1].detach()))
        exchange_parameter(one, params[1], new, Growth(0, 90))
        before = new.detach().clone()
        step(one, [new])
        params[1] = new.detach() - before
    # Steps of lr 1e-2 from moments with 8 bits: 1 % of their block's largest each; measured 3.5e-4.
    torch.testing.assert_close(parameters[1], twins[1], rtol=0, atol=2e-3)


def test_the_first_update_of_new_slots_is_of_ordinary_size():
    optimizer, parameters = trained(TORCH["torch adamw"], steps=200)
    new = nn.Parameter(Growth(1, 70).linear(parameters[1].detach()))
    exchange_parameter(optimizer, parameters[1], new, Growth(1, 70))
    before = new.detach().clone()
    step(optimizer, [new])
    change = (new.detach() - before * (1 - 1e-2 * 0.125)).abs()
    # Mutation: a second moment of 0 with a step count of 200 gives 1.3 times lr here and 3 times later on.
    assert float(change[:, 60:].max()) <= 1.01e-2


@pytest.mark.parametrize("name", ["adamw", "torch adamw", "sgd"])
def test_rotation_maps_moments_as_gradients(name):
    optimizer, parameters = trained({**OURS, **TORCH}[name])
    old = parameters[1]
    before = dict(optimizer.state[old])
    left, right = torch.randn(9, 80), torch.randn(60, 4)
    new = nn.Parameter(torch.zeros(9, 4))
    exchange_parameter(optimizer, old, new, Rotation(left, right))
    key = "momentum_buffer" if name == "sgd" else "exp_avg"
    torch.testing.assert_close(optimizer.state[new][key], left @ before[key] @ right)
    if name != "sgd":
        expected = left.square() @ before["exp_avg_sq"] @ right.square()
        torch.testing.assert_close(optimizer.state[new]["exp_avg_sq"], expected)
        assert int(optimizer.state[new]["step"]) == 3


def test_factored_moments_begin_anew_after_a_rotation():
    optimizer, parameters = trained(TORCH["torch adafactor"])
    new = nn.Parameter(torch.zeros(9, 60))
    exchange_parameter(optimizer, parameters[1], new, Rotation(torch.randn(9, 80)))
    assert new not in optimizer.state
    step(optimizer, [new])
    assert optimizer.state[new]["row_var"].shape == (9, 1)


@pytest.mark.parametrize("name", ["adamw", "torch adamw"])
def test_nothing_is_lost_before_the_first_step(name):
    optimizer, parameters = trained({**OURS, **TORCH}[name], steps=0)
    new = nn.Parameter(torch.zeros(80, 70))
    exchange_parameter(optimizer, parameters[1], new, Growth(1, 70))
    step(optimizer, [new])
    assert optimizer.state[new]["exp_avg"].shape == (80, 70)


def test_schedulers_go_on_and_strangers_are_refused():
    optimizer, parameters = trained(TORCH["torch adamw"])
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    new = nn.Parameter(torch.zeros(80, 70))
    exchange_parameter(optimizer, parameters[1], new, Growth(1, 70))
    step(optimizer, [new])
    schedule.step()
    assert [group["lr"] for group in optimizer.param_groups] == [5e-3, 5e-3]
    with pytest.raises(ConfigError, match=r"AdamW: params lack a parameter of shape \(80, 60\)"):
        exchange_parameter(optimizer, parameters[1], new, Growth(1, 70))
