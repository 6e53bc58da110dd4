"""The learning rate of factors follows their live rank."""

import pytest
import torch
from causal_models import batch, causal_model
from inrank_runs import FAST
from torch.optim.lr_scheduler import LambdaLR

import featherweight as fw
from featherweight.methods.inrank import InRank
from featherweight.methods.inrank.rates import rank_lr_factor
from featherweight.methods.low_rank_model import low_rank_modules
from featherweight.training import follow_groups


def law(layer):
    return rank_lr_factor(layer.rank, layer.out_features, layer.in_features)


def test_the_rate_is_that_of_the_dense_matrix_at_a_third_of_the_ranks_and_falls_as_one_over_the_rank():
    assert rank_lr_factor(100, 300, 400) == rank_lr_factor(100, 400, 300) == 1.0
    assert rank_lr_factor(50, 300, 300) == 2 * rank_lr_factor(100, 300, 300)
    assert rank_lr_factor(1, 300, 300) == rank_lr_factor(2, 300, 300) == 4.0


@pytest.mark.parametrize("scheduled", [True, False])
def test_rates_follow_growth_and_the_final_cut_whatever_the_schedule(scheduled):
    model = causal_model("llama")
    method = InRank(**FAST, freeze_step=7, patience=None)
    fw.apply(model, method)
    optimizer = torch.optim.AdamW(method.param_groups(model, lr=1e-2), lr=1e-2)
    scheduler = LambdaLR(optimizer, lambda step: 1 / (step + 1)) if scheduled else None
    of_group = {
        id(factor.weight): index
        for index, group in enumerate(optimizer.param_groups)
        for layer in low_rank_modules(model).values()
        for factor in (layer.U, layer.V)
        if any(parameter is factor.weight for parameter in group["params"])
    }
    assert len(of_group) == 2 * len(low_rank_modules(model)) and 0 not in of_group.values()
    places = [(name, of_group[id(layer.U.weight)]) for name, layer in low_rank_modules(model).items()]
    ranks = set()
    for step in range(1, 9):
        model(**batch(seed=step % 3)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        method.after_step(model, optimizer, step)
        if scheduler is not None:
            follow_groups(scheduler)
            scheduler.step()
        for name, index in places:
            layer = low_rank_modules(model)[name]
            expected = 1e-2 * law(layer) / (step + 1 if scheduled else 1)
            assert optimizer.param_groups[index]["lr"] == pytest.approx(expected, rel=1e-12)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(1e-2 / (step + 1 if scheduled else 1), rel=1e-12)
        ranks.add(layer.rank)
    assert len(ranks) > 1


def test_a_fixed_multiplier_and_one_rate_for_all():
    model = causal_model("llama")
    fw.apply(model, InRank(**FAST))
    assert len(InRank(lr_factor=1.0).param_groups(model, 1e-2)) == 1
    groups = InRank(lr_factor=0.5).param_groups(model, 1e-2)
    assert {group["lr"] for group in groups[1:]} == {5e-3} and "lr" not in groups[0]
    with pytest.raises(fw.errors.ConfigError, match="lr_factor"):
        InRank(lr_factor=0.0)
