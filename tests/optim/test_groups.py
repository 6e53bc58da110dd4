"""Groups that are added later."""

import pytest
import torch
from torch import nn

import featherweight as fw
from featherweight.optim.groups import named_like


@pytest.mark.parametrize("bare", [True, False])
def test_a_group_without_names_joins_groups_with_names_and_the_other_way_round(bare):
    weight = nn.Linear(8, 8).weight
    first = [nn.Linear(8, 4).weight]
    optimizer = fw.optim.GaLoreAdamW([("first", first[0])] if bare else first, rank=2)
    optimizer.add_param_group({"params": [weight] if bare else [("extra", weight)], "lr": 0.1})
    assert optimizer.param_groups[1].get("param_names") == (["group 1 parameter 0"] if bare else None)
    before = weight.clone()
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    assert not torch.equal(weight, before)


def test_names_that_are_there_stay_and_a_single_tensor_is_a_group():
    weight, other = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(3))
    groups = [{"params": [weight], "param_names": ["a"]}]
    assert named_like(groups, {"params": other, "lr": 1})["params"] == [("group 1 parameter 0", other)]
    assert named_like(groups, {"params": [("b", other)]})["params"] == [("b", other)]
    assert named_like([], {"params": [other]})["params"] == [other]
