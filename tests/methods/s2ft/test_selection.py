"""Which channels are trained: budgets, strategies, calibration, the official draws, orders of heads."""

import copy

import peft
import pytest
import torch
from causal_models import ARCHITECTURES, batch, causal_model
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

import featherweight as fw
from featherweight.errors import ConfigError
from featherweight.methods.s2ft.calibration import calibrate
from featherweight.methods.s2ft.channel_scores import channel_scores
from featherweight.methods.s2ft.channel_selection import official_units
from featherweight.methods.s2ft.layer import s2ft_layers
from featherweight.methods.s2ft.model import prepared_targets


def indices_of(model, name="default"):
    return {place: layer.s2ft_indices[name].tolist() for place, layer in s2ft_layers(model).items()}


def adapted(architecture="llama", **options):
    return peft.get_peft_model(causal_model(architecture), fw.S2FTConfig(**options))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_defaults_cover_attention_outputs_and_last_feed_forward_matrices(architecture):
    model = adapted(architecture, num_channels=8)
    layers = s2ft_layers(model)
    config = model.base_model.model.config

    assert len(layers) == 2 * config.num_hidden_layers
    assert all(layer.s2ft_axis["default"] == "input" for layer in layers.values())
    heads = [name for name in layers if "attn" in name or "attention" in name]
    for name in heads:  # 8 channels are one head of these models
        start = layers[name].s2ft_indices["default"][0].item()
        assert start % 8 == 0 and layers[name].s2ft_indices["default"].tolist() == list(range(start, start + 8))


@pytest.mark.parametrize("kind", ["opt", "bloom", "falcon", "bert", "vit", "t5"])
def test_defaults_of_other_families(kind):
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    options = {
        "opt": {**small, "ffn_dim": 48, "vocab_size": 61, "word_embed_proj_dim": 32, "max_position_embeddings": 64},
        "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4, "vocab_size": 61},
        "falcon": {**small, "vocab_size": 61, "ffn_hidden_size": 48},
        "bert": {**small, "vocab_size": 61},
        "vit": {**small, "image_size": 32, "patch_size": 8},
        "t5": {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "vocab_size": 61},
    }[kind]
    model = AutoModel.from_config(AutoConfig.for_model(kind, **options)).eval()
    count = 10 if kind == "t5" else 4  # T5: encoder 2 x 2, decoder 2 x 3
    inputs = {"input_ids": torch.arange(12).view(2, 6)}
    if kind == "vit":
        inputs = {"pixel_values": torch.randn(2, 3, 32, 32)}
    elif kind == "t5":
        inputs["decoder_input_ids"] = inputs["input_ids"]
    with torch.no_grad():
        plain = model(**inputs).last_hidden_state
    tuned = peft.get_peft_model(model, fw.S2FTConfig(num_channels=8))

    assert len(s2ft_layers(tuned)) == count
    found = tuned.eval()(**inputs).last_hidden_state
    torch.testing.assert_close(found, plain)
    found.sum().backward()
    assert all(layer.s2ft_delta["default"].grad is not None for layer in s2ft_layers(tuned).values())


@pytest.mark.filterwarnings("ignore:fan_in_fan_out")
@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2", "t5"])
def test_r_equivalent_trains_what_lora_of_that_rank_does(kind):
    models = []
    for config in (
        fw.S2FTConfig(r_equivalent=2, multiple_of=1, unit="channel"),
        peft.LoraConfig(r=2, target_modules=["o_proj", "down_proj", "mlp.c_proj", "attn.c_proj", "o", "wo"]),
    ):
        if kind == "t5":
            small = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "vocab_size": 61}
            base = AutoModel.from_config(AutoConfig.for_model("t5", **small))
        else:
            base = causal_model(kind)
        models.append(peft.get_peft_model(base, config).get_nb_trainable_parameters()[0])
    # A module's channels are rounded up: at most one row of 32 more each.
    assert models[1] <= models[0] < models[1] + len(s2ft_layers(adapted())) * 3 * 32


def test_amounts_round_up_to_multiples_and_down_to_heads():
    layers = s2ft_layers(adapted(num_channels=13))
    down, o = (next(layer for name, layer in layers.items() if name.endswith(end)) for end in ("down_proj", "o_proj"))
    assert len(down.s2ft_indices["default"]) == 16 and len(o.s2ft_indices["default"]) == 8
    pattern = adapted(channel_ratio=1.0, channel_pattern={r"0\.mlp\.down_proj": 3, "o_proj": 0.0}, multiple_of=1)
    sizes = {name: len(one) for name, one in indices_of(pattern).items()}
    # Nothing is trained in o_proj, so it is not even wrapped; everything in the other down_proj.
    assert sizes == {"model.layers.0.mlp.down_proj": 3, "model.layers.1.mlp.down_proj": 48}


def test_random_choice_depends_on_seed_and_name_alone():
    both = indices_of(adapted(num_channels=8))
    one = indices_of(adapted(num_channels=8, target_modules=["down_proj"]))
    again = indices_of(adapted(num_channels=8))
    other = indices_of(adapted(num_channels=8, seed=1))

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


def test_scores_are_their_formulas():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(6, 5, generator=generator)
    x = torch.randn(2, 7, 6, generator=generator)
    mask = torch.ones(2, 7)
    mask[0, 4:] = 0
    x[0, 4:] = 1e6  # padding that must not count

    class One(nn.Module):
        def __init__(self):
            super().__init__()
            self.down_proj = nn.Linear(6, 5, bias=False)
            self.down_proj.weight.data = weight.t().contiguous()

        def forward(self, input_ids, attention_mask=None, **_):
            return self.down_proj(x)

    model = One()
    config = fw.S2FTConfig(num_channels=2, target_modules=["down_proj"])
    targets = prepared_targets(model, config)
    statistics = calibrate(model, [{"input_ids": torch.zeros(2, 7), "attention_mask": mask}], targets)["down_proj"]
    real = x[mask.bool()]

    torch.testing.assert_close(channel_scores("weight", weight, 2), weight.view(3, 10).norm(dim=1))
    torch.testing.assert_close(channel_scores("activation", weight, 1, statistics), real.abs().mean(0))
    product = (weight.square().sum(1) * real.square().mean(0)).sqrt()
    torch.testing.assert_close(channel_scores("product", weight, 1, statistics), product)
    torch.testing.assert_close(channel_scores("spectral", weight, 1, spectral_rank=5), weight.norm(dim=1))
    u, s, v = torch.linalg.svd(weight, full_matrices=False)
    best = (u[:, :2] * s[:2]) @ v[:2]
    torch.testing.assert_close(
        channel_scores("spectral", weight, 1, spectral_rank=2), best.norm(dim=1), rtol=1e-3, atol=1e-3
    )
    assert channel_scores("perturbation", weight, 1, statistics).max() < 0.2 * product.max()


def test_gradient_scores_are_norms_of_the_weight_gradient_and_leave_no_trace():
    model = causal_model("llama").train()
    model.model.layers[0].self_attn.q_proj.weight.requires_grad_(False)
    before = {name: (parameter.requires_grad, parameter.grad) for name, parameter in model.named_parameters()}
    config = fw.S2FTConfig(num_channels=8, selection="gradient")
    targets = prepared_targets(model, config)
    data = [batch(seed=0), batch(seed=1)]
    state = torch.random.get_rng_state()

    statistics = calibrate(model, data, targets, gradients=True)

    assert {name: (p.requires_grad, p.grad) for name, p in model.named_parameters()} == before
    assert torch.equal(torch.random.get_rng_state(), state) and model.training
    assert not any(module._forward_hooks for module in model.modules())
    expected = {name: 0 for name in targets}
    for inputs in data:
        model.zero_grad()
        model.eval()(**inputs, use_cache=False).loss.backward()
        for name, target in targets.items():
            gradient = target.module.weight.grad.t().reshape(-1, target.unit, target.other)
            expected[name] = expected[name] + gradient.flatten(1).norm(dim=1) / 2
    for name, norms in expected.items():
        torch.testing.assert_close(statistics[name].gradient_norm, norms, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("selection", ["activation", "product", "gradient", "perturbation"])
def test_select_makes_a_configuration_that_names_its_channels(selection):
    model = causal_model("llama")
    config = fw.s2ft.select(model, [batch()], num_channels=8, selection=selection, select="smallest")
    chosen = {name: one.tolist() for name, one in config.selection.items()}

    tuned = peft.get_peft_model(model, config)

    assert indices_of(tuned) == chosen and len(chosen) == 4
    with pytest.raises(ConfigError, match="Call config = fw.s2ft.select"):
        adapted(num_channels=8, selection=selection)


def test_select_cleans_up_after_an_error():
    model = causal_model("llama").train()
    with pytest.raises(IndexError):
        fw.s2ft.select(model, [{"input_ids": torch.tensor([[10**6]])}], num_channels=8, selection="gradient")
    assert not any(module._forward_hooks for module in model.modules()) and model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    with pytest.raises(ConfigError, match="reaches tokens=0"):
        fw.s2ft.select(model, [], num_channels=8, selection="activation")


def test_a_function_and_an_explicit_choice():
    calls = []

    def score(name, module, statistics):
        calls.append((name, type(module), statistics))
        return torch.arange(module.in_features)

    chosen = indices_of(adapted(num_channels=8, selection=score))
    assert chosen["model.layers.0.mlp.down_proj"] == list(range(40, 48)) and len(calls) == 4
    explicit = adapted(num_channels=8, selection={"model.layers.1.mlp.down_proj": [5, 2]})
    assert indices_of(explicit) == {"model.layers.1.mlp.down_proj": [2, 5]}
    for wrong, message in (
        ({"model.layers.1.mlp.down": [1]}, "Did you mean"),
        ({"model.layers.1.mlp.down_proj": [1, 1]}, "twice"),
        ({"model.layers.1.mlp.down_proj": [48]}, "out of range"),
    ):
        with pytest.raises(ConfigError, match=message):
            adapted(num_channels=8, selection=wrong)
    with pytest.raises(ConfigError, match="not finite"):
        adapted(num_channels=8, selection=lambda name, module, _: torch.full((module.in_features,), torch.nan))


def test_excluded_channels_are_not_chosen_and_too_many_are_refused():
    first = adapted(num_channels=16)
    second = adapted(num_channels=16, exclude=fw.s2ft.Adapter.of_model(first))
    taken, chosen = indices_of(first), indices_of(second)
    assert all(not set(taken[name]) & set(chosen[name]) for name in taken)
    with pytest.raises(ConfigError, match="exclude leaves"):
        adapted(num_channels=24, exclude=[taken, chosen])


# ---- the official code's draws ---------------------------------------------------------------------------------------


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


# ---- orders of heads -------------------------------------------------------------------------------------------------


def test_plans_exist_for_up_to_two_partly_chosen_groups():
    for chosen, exists in (([3, 4, 5], True), ([1, 2, 3, 4, 5], True), ([2, 3, 4, 5, 6], True), ([0, 4, 8], False)):
        plan = fw.s2ft.plan_heads(chosen, num_heads=9, num_groups=3)
        assert (plan is not None) == exists
        if plan is not None:
            assert sorted(plan.queries[plan.start : plan.stop]) == chosen
            assert sorted(plan.queries) == list(range(9)) and sorted(plan.groups) == [0, 1, 2]
            for position, head in enumerate(plan.queries):  # a query head keeps its keys and values
                assert head // 3 == plan.groups[position // 3]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_permuting_changes_no_logit_and_unpermuting_restores_every_byte(architecture, dtype):
    model = causal_model(architecture, dtype).eval()
    with torch.no_grad():  # biases and norms that are all equal would hide that they were left behind
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.linspace(-0.3, 0.3, parameter.numel(), dtype=dtype).sin())
    before = copy.deepcopy(model.state_dict())
    inputs = batch()["input_ids"]
    with torch.no_grad():
        expected = model(inputs).logits
    chosen = {
        name: torch.tensor(one)
        for name, one in indices_of(
            peft.get_peft_model(copy.deepcopy(model), fw.S2FTConfig(num_channels=16, seed=5))
        ).items()
    }

    permuted = fw.s2ft.permute(model, chosen)

    assert permuted.slices.keys() == chosen.keys()
    assert any(not torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    with torch.no_grad():
        found = model(inputs).logits
    error = float((found - expected).abs().max() / expected.abs().max())
    assert error < (1e-12 if dtype == torch.float64 and not _rounds(architecture) else 1e-5)
    for name, (start, stop) in permuted.slices.items():
        weight, old = model.get_submodule(name).weight, before[f"{name}.weight"]
        dimension = 0 if architecture == "gpt2" else 1
        moved = weight.narrow(dimension, start, stop - start)
        wanted = old.index_select(dimension, chosen[name])
        assert sorted(moved.sum(1 - dimension).tolist()) == pytest.approx(
            sorted(wanted.sum(1 - dimension).tolist()), rel=1e-4
        )
    fw.s2ft.unpermute(model, permuted)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def _rounds(architecture):
    """Norms of these models go through float32, whatever the weights are."""
    return architecture not in ("gpt2", "gpt_neox", "phi")


def test_three_partly_chosen_groups_are_left_for_gathering():
    model = causal_model("llama", num_attention_heads=8, num_key_value_heads=4, head_dim=8)
    heads = torch.tensor([0, 2, 4])
    permuted = fw.s2ft.permute(
        model, {"model.layers.0.self_attn.o_proj": (heads[:, None] * 8 + torch.arange(8)).flatten()}
    )
    assert not permuted.slices and not permuted.orders


# ---- wrong settings --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_channels": 8, "channel_ratio": 0.1}, "say twice"),
        ({"channel_ratio": 1.5}, "out of range"),
        ({"num_channels": 0}, "out of range"),
        ({"num_channels": 8, "select": "largst"}, "Did you mean 'largest'"),
        ({"num_channels": 8, "selection": "activations"}, "Did you mean 'activation'"),
        ({"num_channels": 8, "axis_pattern": {"o_proj": "row"}}, "'input' or 'output'"),
        ({"num_channels": 8, "channel_pattern": {"o_proj": 1.5}}, "channel_pattern"),
        ({"num_channels": 8, "update": "inplace", "s2ft_dropout": 0.1}, "expected 0"),
        ({"num_channels": 8, "s2ft_dropout": 1.0}, "out of range"),
        ({"num_channels": 8, "layers_pattern": "layers"}, "layers_to_transform"),
        ({"num_channels": 8, "target_modules": ".*o_proj", "layers_to_transform": [0]}, "list of names"),
    ],
)
def test_wrong_settings_are_one_sentence(options, message):
    with pytest.raises(ConfigError, match=message):
        fw.S2FTConfig(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_channels": 100}, "more than its 32"),
        ({"num_channels": 8, "target_modules": ["embed_tokens"]}, "expected linear layers"),
        ({"num_channels": 8, "target_modules": ["norm"]}, "expected linear layers"),
        ({"compat": "official"}, "compat='official'"),
    ],
)
def test_settings_that_do_not_fit_the_model_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        adapted(**options)


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
def test_tied_heads_unknown_architectures_and_experts_are_refused():
    with pytest.raises(ConfigError, match="also the embedding's"):
        adapted("smollm", num_channels=8, target_modules=["lm_head"])
    assert "lm_head" not in str(indices_of(adapted("smollm", num_channels=8, target_modules="all-linear")))
    with pytest.raises(ConfigError, match="all-linear"):
        peft.get_peft_model(nn.Sequential(nn.Linear(4, 4)), fw.S2FTConfig(num_channels=2))
    plain = peft.get_peft_model(
        nn.Sequential(nn.Linear(4, 4)), fw.S2FTConfig(num_channels=2, multiple_of=1, target_modules=["0"])
    )
    assert len(s2ft_layers(plain)) == 1
    experts = AutoConfig.for_model(
        "mixtral",
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=61,
        num_local_experts=2,
    )
    mixtral = AutoModelForCausalLM.from_config(experts)
    with pytest.raises(ConfigError, match="stacks of experts"):
        peft.get_peft_model(mixtral, fw.S2FTConfig(num_channels=8))
    tuned = peft.get_peft_model(mixtral, fw.S2FTConfig(num_channels=8, target_modules=["o_proj"]))
    assert list(indices_of(tuned)) == ["model.layers.0.self_attn.o_proj"]
