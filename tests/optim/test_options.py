"""Options of parameter groups."""

import math
from typing import get_args

import numpy as np
import pytest
import torch
from torch import nn

from featherweight.errors import ConfigError
from featherweight.linalg.basis import BASIS_METHODS
from featherweight.linalg.tucker_fit import TUCKER_METHODS
from featherweight.linalg.tucker_ranks import RANK_COUNTS
from featherweight.optim import (
    AdamW,
    GaLoreAdamW,
    TensorGaLoreAdamW,
    layerwise,
    optimizers,
    param_groups,
    parse_optimizer,
)
from featherweight.optim.options import GaLoreOptions, TensorOptions, options_of
from featherweight.optim.policies.moments import moment_policies
from featherweight.optim.policies.residual import residual_policies
from featherweight.optim.policies.rules import rules
from featherweight.optim.presets.arguments import arguments_of


def weight():
    return nn.Parameter(torch.ones(10, 12))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("lr", None),
        ("lr", "0.1"),
        ("lr", math.inf),
        ("eps", math.nan),
        ("weight_decay", None),
        ("scale", None),
        ("betas", None),
        ("betas", (0.9,)),
        ("seed", None),
        ("seed", 1.5),
        ("update_proj_gap", True),
        ("rank", "8"),
        ("split", "qkv"),
        ("split", {"qkv": 0}),
        ("stacked", "no"),
        ("low_rank", 3),
    ],
)
def test_a_value_of_a_wrong_type_is_refused_at_once_and_named(key, value):
    with pytest.raises(ConfigError, match=f"GaLoreAdamW: {key}=.* is not allowed; expected"):
        GaLoreAdamW([{"params": [("qkv.weight", weight())], "rank": 4, key: value}])


def test_adamw_refuses_groups_that_ask_for_a_projection():
    # It would refresh a basis at every step.
    with pytest.raises(ConfigError, match="AdamW: low_rank=True cannot be used.*Use GaLoreAdamW"):
        AdamW(param_groups(nn.Sequential(nn.Linear(8, 8)), rank=4))
    AdamW([{"params": [weight()], "rank": 4, "low_rank": False}])


def test_one_tensor_instead_of_a_list_is_refused():
    with pytest.raises(ConfigError, match=r"params=Tensor\(10, 12\) is one tensor.*Put it into a list"):
        GaLoreAdamW(weight())


def test_complex_parameters_among_projected_matrices_are_refused_when_the_optimizer_is_built():
    with pytest.raises(ConfigError, match="dtype=torch.complex64.*TensorGaLoreAdamW"):
        GaLoreAdamW([nn.Parameter(torch.zeros(3, dtype=torch.complex64))])


@pytest.mark.parametrize(("schedule", "key"), [("OneCycleLR", "max_lr"), ("CyclicLR", "max_momentum"), ("SWALR", "")])
def test_groups_that_a_scheduler_has_written_to_make_another_optimizer(schedule, key):
    optimizer = GaLoreAdamW([weight()], rank=4)
    if schedule == "OneCycleLR":
        torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=9)
    elif schedule == "CyclicLR":
        torch.optim.lr_scheduler.CyclicLR(optimizer, 0.1, 0.2)
    else:
        torch.optim.swa_utils.SWALR(optimizer, 0.1)
    assert not key or key in optimizer.param_groups[0]
    assert GaLoreAdamW(optimizer.param_groups).param_groups[0]["rank"] == 4


def test_options_that_shape_the_state_hold_although_a_group_is_changed_and_another_added():
    first = weight()
    optimizer = GaLoreAdamW([first], rank=2)
    first.grad = torch.ones(10, 12)
    optimizer.step()
    optimizer.param_groups[0].update(rank=4, residual="fira")
    optimizer.add_param_group({"params": [weight()]})
    optimizer.step()
    assert optimizer.state[first]["basis_left"].shape == (10, 2)
    assert sum(value.nbytes for value in optimizer.state[first].values()) == optimizer.layouts[first].nbytes()


def test_lr_may_be_a_tensor():
    results = []
    for lr in (0.1, torch.tensor(0.1)):
        one, two = weight(), weight()
        optimizer = GaLoreAdamW([{"params": [one], "rank": 2}, {"params": [two]}], lr=lr)
        one.grad, two.grad = torch.ones(10, 12), torch.ones(10, 12)
        optimizer.step()
        results.append((one, two))
    # float32's 0.1 differs from float64's by 1.5e-9.
    torch.testing.assert_close(*results, rtol=0, atol=1e-6)


def test_numbers_of_numpy_count_as_numbers_and_are_kept_as_those_of_python():
    weight, kernel = nn.Parameter(torch.ones(64, 64)), nn.Parameter(torch.ones(12, 8, 6, 6))
    rank, gap = np.int64(8), np.int32(7)
    optimizer = GaLoreAdamW([weight], rank=rank, update_proj_gap=gap, lr=np.float32(0.5), seed=np.uint8(3))
    group = optimizer.param_groups[0]
    assert {key: type(group[key]) for key in ("rank", "update_proj_gap", "lr", "seed")} == {
        "rank": int,
        "update_proj_gap": int,
        "lr": float,
        "seed": int,
    }
    assert GaLoreAdamW([{"params": [weight], "rank": np.float32(0.25)}]).layouts[weight].rank == 16
    tensors = TensorGaLoreAdamW([kernel], rank=[np.int64(4), np.int64(4), 3, 3], min_numel=np.int64(10))
    assert tensors.layouts[kernel].plan.ranks == (4, 4, 3, 3)
    assert parse_optimizer({"name": "galore", "rank": rank, "update_proj_gap": gap}).rank == 8
    with pytest.raises(ConfigError, match="rank=True"):
        GaLoreAdamW([weight], rank=np.bool_(True))
    with layerwise(model := nn.Linear(8, 8), AdamW(model.parameters()), accumulation_steps=np.int64(2)):
        pass


def test_declared_choices_are_those_of_the_registries():
    def choices(key):
        return {one for part in get_args(options_of(GaLoreOptions)[key].kind) for one in get_args(part) or (part,)}

    assert set(get_args(options_of(GaLoreOptions)["rule"].kind)) | {"scale"} == set(rules.names())
    assert set(get_args(options_of(GaLoreOptions)["moment_policy"].kind)) == set(moment_policies.names())
    assert choices("residual") - {type(None)} == set(residual_policies.names())
    assert set(get_args(options_of(GaLoreOptions)["basis_method"].kind)) == {*BASIS_METHODS, "gaussian"}
    assert set(get_args(options_of(TensorOptions)["basis_method"].kind)) == set(TUCKER_METHODS)
    assert set(get_args(options_of(TensorOptions)["rank_counts"].kind)) == set(RANK_COUNTS)


@pytest.mark.parametrize("name", optimizers.names())
def test_a_recipe_takes_every_option_of_its_optimizer(name):
    named = optimizers.get(name)
    arguments = arguments_of(named.optimizer)
    declared = set(options_of(arguments.family)) - {"seed", "beta1", "normalize", *arguments.fixed}
    assert declared <= set(named.config.model_fields)
    assert all(named.config.model_fields[key].description for key in declared)
