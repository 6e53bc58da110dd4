"""Which channels are trained: strategies, explicit choices, the official draws."""

import peft
import pytest
import torch
from causal_models import causal_model
from s2ft_models import indices_of, selecting
from transformers import AutoConfig, AutoModelForCausalLM

import featherweight as fw
from featherweight.errors import ConfigError
from featherweight.methods.s2ft.channel_selection import official_units


def test_random_choice_depends_on_seed_and_name_alone():
    both = indices_of(selecting(num_channels=8))
    one = indices_of(selecting(num_channels=8, target_modules=["down_proj"]))
    again = indices_of(selecting(num_channels=8))
    other = indices_of(selecting(num_channels=8, seed=1))

    assert both == again and both != other
    assert all(both[name] == chosen for name, chosen in one.items()) and len(one) == 2
    assert all(chosen == sorted(set(chosen)) for chosen in both.values())
    assert one["model.layers.0.mlp.down_proj"] != one["model.layers.1.mlp.down_proj"]


@pytest.mark.parametrize("select", ["largest", "smallest"])
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_weight_magnitude_finds_the_planted_channels(select, scope):
    model = causal_model("llama")
    planted = torch.tensor([3, 17, 30])
    for layer in model.model.layers:
        layer.mlp.down_proj.weight.data[:, planted] *= 100 if select == "largest" else 0.01
    config = {"num_channels": 3, "multiple_of": 1, "target_modules": ["down_proj"], "selection": "weight"}
    tuned = peft.get_peft_model(model, fw.S2FTConfig(**config, select=select, scope=scope))

    assert all(chosen == planted.tolist() for chosen in indices_of(tuned).values())


def test_global_scope_spends_the_budget_where_scores_are_highest():
    model = causal_model("llama")
    model.model.layers[1].mlp.down_proj.weight.data *= 100
    config = {"num_channels": 8, "target_modules": ["down_proj"], "selection": "weight", "scope": "global"}
    sizes = [len(one) for one in indices_of(peft.get_peft_model(model, fw.S2FTConfig(**config))).values()]
    assert sizes == [16]


def test_a_function_and_an_explicit_choice():
    calls = []

    def score(name, module, statistics):
        calls.append((name, type(module), statistics))
        return torch.arange(module.in_features)

    chosen = indices_of(selecting(num_channels=8, selection=score))
    assert chosen["model.layers.0.mlp.down_proj"] == list(range(40, 48)) and len(calls) == 4
    explicit = selecting(num_channels=8, selection={"model.layers.1.mlp.down_proj": [5, 2]})
    assert indices_of(explicit) == {"model.layers.1.mlp.down_proj": [2, 5]}
    for wrong, message in (
        ({"model.layers.1.mlp.down": [1]}, "Did you mean"),
        ({"model.layers.1.mlp.down_proj": [1, 1]}, "twice"),
        ({"model.layers.1.mlp.down_proj": [48]}, "out of range"),
    ):
        with pytest.raises(ConfigError, match=message):
            selecting(num_channels=8, selection=wrong)
    with pytest.raises(ConfigError, match="not finite"):
        selecting(num_channels=8, selection=lambda name, module, _: torch.full((module.in_features,), torch.nan))


def test_excluded_channels_are_not_chosen_and_too_many_are_refused():
    first = selecting(num_channels=16)
    second = selecting(num_channels=16, exclude=fw.s2ft.Adapter.of_model(first))
    taken, chosen = indices_of(first), indices_of(second)
    assert all(not set(taken[name]) & set(chosen[name]) for name in taken)
    with pytest.raises(ConfigError, match="exclude leaves"):
        selecting(num_channels=24, exclude=[taken, chosen])


def test_official_draws_for_llama_2_7b_and_llama_3_8b():
    _, o, _, down = official_units([(32, 0.0), (32, 0.052), (11008, 0.0), (11008, 0.02)], layers=32, seed=0)
    flat = [32 * layer + head for layer, heads in enumerate(o) for head in heads]
    assert flat[:8] == [2, 28, 82, 127, 128, 151, 164, 186] and len(flat) == 53
    assert [layer for layer, heads in enumerate(o) if not heads] == [1, 10, 11, 17, 23, 29]
    flat = [11008 * layer + channel for layer, channels in enumerate(down) for channel in channels]
    assert flat[:6] == [36, 70, 126, 132, 193, 239] and len(flat) == 7045 and len(down[0]) == 226
    (down,) = official_units([(14336, 0.03)], layers=32, seed=0)
    flat = [14336 * layer + channel for layer, channels in enumerate(down) for channel in channels]
    assert flat[:6] == [12, 36, 57, 70, 86, 126] and len(flat) == 13762 and len(down[0]) == 456


@pytest.mark.parametrize(
    ("shape", "shares", "parameters"),
    [
        ({"intermediate_size": 11008, "num_key_value_heads": 32}, {"o_proj": 0.052, "down_proj": 0.02}, 56_643_584),
        ({"intermediate_size": 14336, "num_key_value_heads": 8}, {"down_proj": 0.03}, 56_369_152),
    ],
)
def test_official_selection_trains_the_papers_number_of_parameters(shape, shares, parameters):
    config = AutoConfig.for_model(
        "llama", vocab_size=64, hidden_size=4096, num_hidden_layers=32, num_attention_heads=32, **shape
    )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)

    tuned = peft.get_peft_model(model, fw.S2FTConfig(compat="official", channel_pattern=shares))

    assert tuned.get_nb_trainable_parameters()[0] == parameters
