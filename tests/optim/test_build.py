"""Optimizers by name, as recipes use them."""

import pytest
import torch
from torch import nn

from featherweight.errors import ConfigError
from featherweight.optim import AdamW, GaLoreAdamW, build_optimizer, optimizers, parse_optimizer
from featherweight.optim.named import NOT_IN_RECIPES, inherited_options


class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(20, 16)
        self.mlp = nn.Linear(16, 16)
        self.head = nn.Linear(16, 20, bias=False)

    def get_output_embeddings(self):
        return self.head

    def forward(self, tokens):
        return self.head(self.mlp(self.embed(tokens)))


@pytest.mark.parametrize("name", optimizers.names())
def test_a_recipe_has_the_defaults_of_the_class(name):
    config, defaults = parse_optimizer({"name": name}), optimizers.get(name).optimizer.__arguments__.defaults
    # Recipes have rates of their own and compare like with like; "_8bit" says what it says.
    apart = {"lr", "betas", "weight_decay", *NOT_IN_RECIPES}
    apart |= {"scale"} if name == "tensorgrad" else set()
    apart |= {"state_bits", "basis_bits"} if name.endswith("bit") else set()
    assert {key: getattr(config, key) for key in defaults if key not in apart} == {
        key: default for key, default in defaults.items() if key not in apart
    }


@pytest.mark.parametrize("name", optimizers.names())
def test_every_named_optimizer_builds_and_lowers_the_loss(name):
    torch.manual_seed(0)
    model = Tiny()
    options = {"name": name, "lr": 0.05} | ({"rank": 4, "update_proj_gap": 5} if name.startswith("galore") else {})
    optimizer = build_optimizer(model, parse_optimizer(options), seed=1)
    tokens, targets = torch.arange(20), torch.arange(20).roll(1)
    losses = []
    for _ in range(30):
        loss = nn.functional.cross_entropy(model(tokens), targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]


def test_presets_choose_the_storages_their_name_says():
    assert parse_optimizer("galore_8bit").state_bits == 8
    assert parse_optimizer({"name": "galore_8bit", "state_bits": 4}).state_bits == 4
    assert isinstance(build_optimizer(Tiny(), parse_optimizer("adamw")), AdamW)
    assert isinstance(build_optimizer(Tiny(), parse_optimizer({"name": "galore", "rank": 4})), GaLoreAdamW)


@pytest.mark.parametrize("name", ["adamw", "galore"])
def test_embedding_lr_factor_reaches_embedding_and_head_only(name):
    model = Tiny()
    optimizer = build_optimizer(model, parse_optimizer({"name": name, "lr": 0.1, "embedding_lr_factor": 4}))
    rates = {name: group["lr"] for group in optimizer.param_groups for name in group["param_names"]}
    assert rates == {"embed.weight": 0.4, "head.weight": 0.4, "mlp.weight": 0.1, "mlp.bias": 0.1}


def test_matrix_lr_factor_reaches_matrices_only():
    optimizer = build_optimizer(Tiny(), parse_optimizer({"name": "adamw", "lr": 0.1, "matrix_lr_factor": 0.5}))
    rates = {name: group["lr"] for group in optimizer.param_groups for name in group["param_names"]}
    assert rates == {"embed.weight": 0.1, "head.weight": 0.1, "mlp.weight": 0.05, "mlp.bias": 0.1}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("adamv", "adamv.*Did you mean 'adamw'"),
        ({"lr": 0.1}, "name is missing"),
        ({"name": "galore", "rank": 0}, "rank"),
        ({"name": "galore", "rnak": 4}, "rnak.*Did you mean 'rank'"),
        ({"name": "adamw", "rank": 4}, "rank"),
        ({"name": "adamw", "betas": [0.9, 1.5]}, "betas"),
        ({"name": "galore", "state_bits": 5}, "state_bits"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ConfigError, match=message):
        parse_optimizer(options)


def test_a_name_keeps_the_options_of_its_family_and_none_of_another():
    given = {"name": "galore", "rank": 8, "lr": 0.1, "state_bits": 32}
    assert inherited_options("galore_8bit", given) == {"name": "galore_8bit", "rank": 8, "lr": 0.1}
    assert inherited_options("galore", given) == given
    assert inherited_options("adamw", given) == {"name": "adamw"}
    assert inherited_options("unknown", given) == {"name": "unknown"}


def test_ranks_of_tensors_may_be_automatic_under_a_budget():
    model = nn.Sequential(nn.Conv2d(16, 16, 3, bias=False))
    config = parse_optimizer({"name": "tensor_galore", "rank": "auto", "rank_budget": 0.1})
    (layout,) = build_optimizer(model, config).layouts.values()
    assert (layout.plan.budget, layout.plan.ranks) == (230, ())
    with pytest.raises(ConfigError, match="rank_budget=2.0"):
        parse_optimizer({"name": "tensor_galore", "rank": "auto", "rank_budget": 2.0})
