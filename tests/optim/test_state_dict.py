"""A state says what it is, and replaces nothing that was asked for unless it is adopted."""

import copy

import pytest
import torch
from torch import nn

import featherweight as fw
from featherweight.errors import CheckpointError
from featherweight.optim.state_dict import KIND

SHAPE = (600, 80)
"""Cores of rank 8 are just large enough to be stored in codes."""

OPTIMIZERS = {
    "galore": lambda p: fw.optim.GaLoreAdamW(p, rank=8),
    "galore of rank 4": lambda p: fw.optim.GaLoreAdamW(p, rank=4),
    "galore on the left": lambda p: fw.optim.GaLoreAdamW(p, rank=8, proj_type="left"),
    "galore, 8-bit": lambda p: fw.optim.GaLoreAdamW(p, rank=8, state_bits=8),
    "galore, 4-bit basis": lambda p: fw.optim.GaLoreAdamW(p, rank=8, basis_bits=4),
    "galore, random": lambda p: fw.optim.GaLoreAdamW(p, rank=8, basis_method="random"),
    "galore, muon": lambda p: fw.optim.GaLoreAdamW(p, rank=8, rule="muon"),
    "galore, lazy": lambda p: fw.optim.GaLoreAdamW(p, rank=8, lazy=True),
    "fira": lambda p: fw.optim.Fira(p, rank=8),
    "apollo": lambda p: fw.optim.Apollo(p, rank=8),
    "apollo_mini": lambda p: fw.optim.ApolloMini([{"params": p, "low_rank": True}]),
    "ldadam": lambda p: fw.optim.LDAdamW(p, rank=8),
    "gum": lambda p: fw.optim.GUM(p, rank=8),
    "adafactor": lambda p: fw.optim.GaLoreAdafactor(p, rank=8),
    "adamw": fw.optim.AdamW,
    "adamw, 8-bit": lambda p: fw.optim.AdamW(p, state_bits=8),
    "tensor_galore": lambda p: fw.optim.TensorGaLoreAdamW(p),
    "tensorgrad": lambda p: fw.optim.TensorGRaD(p),
}


def built(name, shape=SHAPE):
    parameter = nn.Parameter(torch.linspace(-1, 1, shape[0] * shape[1]).view(shape).sin())
    return parameter, OPTIMIZERS[name]([parameter])


def stepped(name, steps=2):
    parameter, optimizer = built(name)
    for step in range(steps):
        parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(step))
        optimizer.step()
    return parameter, optimizer


STATES = {name: stepped(name)[1].state_dict() for name in OPTIMIZERS}


@pytest.mark.parametrize("marked", [True, False], ids=["marked", "from before the mark"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_takes_its_own_state_and_refuses_that_of_all_others(name, marked):
    # Mutation: without the comparison GaLore's state turns Apollo into GaLore, without a word.
    for other, state in STATES.items():
        state = copy.deepcopy(state)
        if not marked and {name, other} == {"tensor_galore", "tensorgrad"}:
            continue  # one optimizer on a matrix, which neither projects
        if not marked:
            for group in state["param_groups"]:
                del group[KIND]
        _, optimizer = built(name)
        before = copy.deepcopy(optimizer.param_groups[0])
        if other == name:
            optimizer.load_state_dict(state)
            assert KIND not in optimizer.param_groups[0]
        else:
            with pytest.raises(CheckpointError):
                optimizer.load_state_dict(state)
            assert {k: v for k, v in optimizer.param_groups[0].items() if k != "params"} == {
                k: v for k, v in before.items() if k != "params"
            }, other


@pytest.mark.parametrize(
    "name, other, words",
    [
        ("apollo", "galore", "the state is one of GaLoreAdamW; expected one of Apollo"),
        ("galore", "galore of rank 4", "has rank=4; expected rank=8"),
        ("galore", "galore on the left", "has proj_type='left'; expected proj_type='std'"),
        ("galore", "galore, 8-bit", "has state_bits=8; expected state_bits=32"),
        ("galore", "galore, 4-bit basis", "has basis_bits=4; expected basis_bits=None"),
        ("galore", "galore, muon", "has rule='muon'; expected rule='adamw'"),
        ("adamw, 8-bit", "adamw", "has state_bits=32; expected state_bits=8"),
    ],
)
def test_the_sentence_has_both_values(name, other, words):
    _, optimizer = built(name)
    with pytest.raises(CheckpointError, match=words) as refused:
        optimizer.load_state_dict(copy.deepcopy(STATES[other]))
    assert "adopt=True" in str(refused.value)


@pytest.mark.parametrize("other", ["galore", "galore of rank 4", "galore, 8-bit", "fira", "apollo", "gum"])
def test_an_adopted_state_goes_on_as_the_optimizer_that_wrote_it(other):
    parameter, source = stepped(other)
    twin, optimizer = built("galore")
    with torch.no_grad():
        twin.copy_(parameter)
    optimizer.load_state_dict(source.state_dict(), adopt=True)
    for step in range(2, 5):
        grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(step))
        for one, by in ((parameter, source), (twin, optimizer)):
            one.grad = grad.clone()
            by.step()
    assert torch.equal(parameter, twin)


def test_options_that_shape_nothing_are_those_of_the_state_as_in_torch():
    parameter = nn.Parameter(torch.ones(SHAPE))
    optimizer = fw.optim.GaLoreAdamW([parameter], rank=8, lr=1.0, scale=2.0, update_proj_gap=7)
    optimizer.load_state_dict(copy.deepcopy(STATES["galore"]))
    group = optimizer.param_groups[0]
    assert (group["lr"], group["scale"], group["update_proj_gap"]) == (1e-3, 0.25, 200)


def test_a_rank_that_is_a_share_is_the_number_that_it_stands_for():
    parameter = nn.Parameter(torch.ones(SHAPE))
    optimizer = fw.optim.GaLoreAdamW([parameter], rank=0.1)
    optimizer.load_state_dict(copy.deepcopy(STATES["galore"]))
    with pytest.raises(CheckpointError, match=r"rank=8; expected rank=0\.2"):
        fw.optim.GaLoreAdamW([parameter], rank=0.2).load_state_dict(copy.deepcopy(STATES["galore"]))


def test_a_subclass_made_elsewhere_is_of_the_kind_of_its_base():
    class Mine(fw.optim.GaLoreAdamW):
        pass

    parameter = nn.Parameter(torch.ones(SHAPE))
    Mine([parameter], rank=8).load_state_dict(copy.deepcopy(STATES["galore"]))
    assert Mine([parameter], rank=8).state_dict()["param_groups"][0][KIND] == "GaLoreAdamW"


@pytest.mark.parametrize("name", ["galore", "galore, random", "fira", "apollo", "adamw", "adamw, 8-bit"])
@pytest.mark.parametrize("first, then", [("float32", "bfloat16"), ("bfloat16", "float32"), ("float32", "float16")])
def test_after_a_change_of_dtype_an_optimizer_takes_its_own_state_and_goes_on_bitwise(name, first, then):
    # Bases have 16 bits beside 16-bit weights: those of a state stay as wide as they are.
    parameter, twin = (nn.Parameter(built(name)[0].data.to(getattr(torch, first))) for _ in range(2))
    optimizer, resumed = (OPTIMIZERS[name]([one]) for one in (parameter, twin))
    parameter.grad = torch.ones_like(parameter) + parameter.detach()
    optimizer.step()
    parameter.data, parameter.grad = parameter.data.to(getattr(torch, then)), None
    twin.data = parameter.data.clone()
    resumed.load_state_dict(optimizer.state_dict())
    optimizer.load_state_dict(optimizer.state_dict())
    for _ in range(3):
        for one, by in ((parameter, optimizer), (twin, resumed)):
            one.grad = (one.detach() * 3).cos()
            by.step()
    assert torch.equal(parameter, twin) and bool(parameter.isfinite().all())
