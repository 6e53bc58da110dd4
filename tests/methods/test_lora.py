"""LoRA as a method of featherweight: PEFT's layers, applied, removed, trained, saved, resumed and simulated."""

import copy
import json

import peft
import pytest
import torch
from causal_models import batch, causal_model
from transformers import AutoModelForCausalLM

import featherweight as fw
from featherweight.errors import CheckpointError, ConfigError
from featherweight.memory.simulate import simulation
from featherweight.methods import parse_methods
from featherweight.methods.lora import LoRA, lora_layers
from featherweight.methods.s2ft.method import S2FT
from featherweight.models import load_model
from featherweight.nn.int8_module import Int8Module
from featherweight.simulated import SimulatedDevice
from featherweight.training.checkpoint import Checkpoints
from featherweight.training.loop import Loop
from featherweight.training.recipe import Recipe

SETTINGS = {
    "task": {"name": "text", "model": "tiny", "seq_len": 64, "max_train_tokens": 4000, "max_held_out_tokens": 500},
    "optimizer": {"name": "adamw", "lr": 1e-2},
    "steps": 4,
    "micro_batch_size": 2,
    "memory_steps": [],
    "save_model": True,
}


def recipe(**changes):
    return Recipe.parse({**SETTINGS, "methods": [{"lora": {"r": 4}}], **changes})


def filled(model, std=0.1):
    """Give the factors that begin at zero random values, so that the change shows."""
    generator = torch.Generator().manual_seed(0)
    for layer in lora_layers(model).values():
        weight = layer.lora_B["default"].weight
        weight.data.copy_(torch.randn(weight.shape, generator=generator) * std)
    return model


def logits(model):
    with torch.no_grad():
        return model(input_ids=batch()["input_ids"]).logits


def trained_names(model):
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


@pytest.mark.parametrize("architecture", ["llama", "llama with biases", "smollm", "phi3", "gpt2"])
def test_apply_and_remove_leave_the_model_as_it_was(architecture):
    model = causal_model(architecture)
    next(model.parameters()).requires_grad_(False)
    before = {name: (tensor.clone(), tensor.requires_grad) for name, tensor in model.named_parameters()}
    structure, plain = repr(model), logits(model)

    report = fw.apply(model, LoRA(r=4))
    layers = lora_layers(model)
    by_hand = sum(4 * (layer.in_features + layer.out_features) for layer in layers.values())
    assert report.section("Facts").facts == {"trained parameters": by_hand, "modules": len(layers)}
    assert not any("head" in name for name in layers)
    assert trained_names(model) and all(".lora_" in name for name in trained_names(model))
    assert torch.equal(logits(model), plain)
    assert not torch.equal(logits(filled(model)), plain)
    with pytest.raises(ConfigError, match="is applied to this model already"):
        fw.apply(model, LoRA())
    other = copy.deepcopy(model)
    for one in (model, other):
        fw.remove(one, LoRA())
        assert repr(one) == structure and not hasattr(one, "peft_config")
        assert [name for name, _ in one.named_parameters()] == list(before)
        for name, tensor in one.named_parameters():
            assert torch.equal(tensor, before[name][0]) and tensor.requires_grad == before[name][1], name


@pytest.mark.parametrize(
    "options",
    [{}, {"use_rslora": True}, {"use_dora": True}, {"lora_alpha": 5}, {"target_modules": ["q_proj", "down_proj"]}],
)
def test_it_computes_what_peft_computes_with_the_same_options(options):
    torch.manual_seed(3)
    model = causal_model("llama")
    fw.apply(model, LoRA(r=4, **options))
    torch.manual_seed(3)
    config = peft.LoraConfig(**{"r": 4, "lora_alpha": 32, "target_modules": "all-linear", **options})
    expected = peft.get_peft_model(causal_model("llama"), config)
    assert torch.equal(logits(filled(model)), logits(filled(expected.base_model.model)))
    assert len(lora_layers(model)) == len(lora_layers(expected))


@pytest.mark.parametrize(
    "options",
    [
        {"use_dora": True},
        {"use_rslora": True, "target_modules": ["o_proj"]},
        pytest.param({}, marks=pytest.mark.slow),
    ],
)
def test_run_folder_opens_with_transformers_and_with_stock_peft(options, tmp_path):
    run = fw.train(recipe(methods=[{"lora": {"r": 4, **options}}]), out=tmp_path / "run", callbacks=[])
    merged = AutoModelForCausalLM.from_pretrained(run.folder / "model").eval()
    loop = Loop(recipe())
    base = loop.task.build_model()
    tuned = peft.PeftModel.from_pretrained(base, run.folder / "adapter").eval()

    ids = next(loop.task.batches("held_out", micro_batch_size=2, seed=0))["input_ids"]
    with torch.no_grad():
        # float32; the change is one product or two
        torch.testing.assert_close(merged(ids).logits, tuned(ids).logits, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(merged(ids).logits, loop.task.build_model().eval()(ids).logits, atol=1e-3)
    assert run.summary.held_out["held_out_loss"] < run.summary.before_training["held_out_loss"]


@pytest.mark.parametrize("architecture", ["llama with biases", "gpt2", "smollm"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_saving_writes_the_adapter_bit_by_bit_and_leaves_the_model_as_it_is(architecture, dtype, tmp_path):
    torch.manual_seed(0)  # of the adapters' first factors
    model = causal_model(architecture, dtype).eval()
    method = LoRA(r=4)
    fw.apply(model, method)
    filled(model)
    changed = logits(model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    plain_names = set(causal_model(architecture).state_dict())

    with method.saving(model, tmp_path / "model"):
        assert set(model.state_dict()) == plain_names
        merged = logits(model)
    after = model.state_dict()
    assert list(after) == list(before) and all(torch.equal(after[name], before[name]) for name in after)
    assert torch.equal(logits(model), changed)
    # Weights of 0.2 to 1 beside logits of some 10: bfloat16 rounds the merged ones by up to 2^-9 each; the largest
    # error over five seeds was 0.025. Mutation: a factor of two in the merge makes it some tenths.
    error = (merged - changed).float().norm() / changed.float().norm()
    assert error < (1e-5 if dtype == torch.float32 else 0.04)
    tuned = peft.PeftModel.from_pretrained(causal_model(architecture, dtype), tmp_path / "adapter").eval()
    assert torch.equal(logits(tuned), changed)
    assert {p.dtype for name, p in model.named_parameters() if "lora_" in name} == {torch.float32}


def test_failing_save_still_gives_the_model_its_adapters_back(tmp_path):
    model = causal_model("llama").eval()
    fw.apply(model, LoRA(r=4))
    changed = logits(filled(model))
    with pytest.raises(RuntimeError, match="disk"), LoRA(r=4).saving(model, tmp_path / "model"):
        raise RuntimeError("disk")
    assert torch.equal(logits(model), changed)
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot be written"), LoRA(r=4).saving(model, tmp_path / "file" / "m"):
        pass
    assert torch.equal(logits(model), changed)


def test_saved_adapter_names_its_modules_and_the_class_of_its_base(tmp_path):
    model = causal_model("llama")
    method = LoRA(r=4, target_modules=["q_proj"])
    fw.apply(model, method)
    with method.saving(model, tmp_path / "model"):
        pass
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["inference_mode"]) == ("LORA", 4, True)
    assert config["target_modules"] == [f"model.layers.{i}.self_attn.q_proj" for i in range(2)]
    assert config["auto_mapping"]["base_model_class"] == "LlamaForCausalLM"
    assert not model.peft_config["default"].inference_mode


@pytest.mark.parametrize(
    "options", [{"lora_dropout": 0.2}, *(pytest.param(one, marks=pytest.mark.slow) for one in ({}, {"use_dora": True}))]
)
def test_a_resumed_run_equals_the_uninterrupted_one_bit_by_bit(options, tmp_path):
    settings = recipe(methods=[{"lora": {"r": 4, **options}}])
    straight = Loop(settings)
    for _ in range(4):
        straight.step()
    first = Loop(settings)
    for _ in range(2):
        first.step()
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(2, first.model, first.state_dict(), settings.to_dict())
    second = Loop(settings)
    second.resume(checkpoints.latest())
    for _ in range(2):
        second.step()

    one, other = straight.model.state_dict(), second.model.state_dict()
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_initial_values_follow_from_the_seed_of_the_recipe():
    def first_factor(seed):
        return next(iter(lora_layers(Loop(recipe(seed=seed)).model).values())).lora_A["default"].weight

    assert torch.equal(first_factor(1), first_factor(1)) and not torch.equal(first_factor(1), first_factor(2))


@pytest.mark.parametrize(
    "changes",
    [
        {"activation_checkpointing": True},
        {"methods": ["mst", {"lora": {"r": 4}}]},
        pytest.param({"methods": [{"lora": {"r": 4}}, "mst"]}, marks=pytest.mark.slow),
        {"methods": [{"mst": {"tokenwise": True, "checkpoint": True}}, {"lora": {"r": 4}}]},
        {"accumulation_steps": 2, "micro_batch_size": 1},
        {"optimizer": {"name": "adamw", "lr": 1e-2, "layerwise": True}, "max_grad_norm": None},
    ],
)
def test_recipes_that_should_change_nothing_change_nothing(changes):
    expected = Loop(recipe(max_grad_norm=None))
    found = Loop(recipe(**{"max_grad_norm": None, **changes}))
    losses = [[loop.step()["loss"] for _ in range(3)] for loop in (expected, found)]

    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    assert losses[0][2] < losses[0][0]
    assert len(trained_names(found.model)) == 2 * 7 * found.model.config.num_hidden_layers


@pytest.mark.parametrize(
    ("optimizer", "precision"),
    [("adamw", "bf16_autocast"), ("adamw_8bit", "bf16"), ("galore", "bf16")]
    + [pytest.param("adamw", "bf16", marks=pytest.mark.slow)]
    + [pytest.param(name, "bf16_autocast", marks=pytest.mark.slow) for name in ("adamw_8bit", "galore")],
)
def test_it_goes_with_other_optimizers_and_precisions(optimizer, precision):
    rank = {"rank": 2} if optimizer == "galore" else {}
    loop = Loop(recipe(optimizer={"name": optimizer, "lr": 1e-2, **rank}, precision=precision))
    before = loop.evaluate()["held_out_loss"]
    for _ in range(4):
        loop.step()

    assert loop.evaluate()["held_out_loss"] < before
    assert {p.dtype for p in loop.model.parameters() if p.requires_grad} == {torch.float32}


@pytest.mark.parametrize("order", [(fw.Int8(), LoRA(r=4)), (LoRA(r=4), fw.Int8())])
def test_int8_weights_stay_frozen_codes_and_are_saved_as_floats_with_the_change(order, tmp_path):
    torch.manual_seed(0)
    model = causal_model("llama with biases").eval()
    for method in order:
        fw.apply(model, method)
    filled(model)
    assert all(isinstance(layer.get_base_layer(), Int8Module) for layer in lora_layers(model).values())
    assert trained_names(model) and all(".lora_" in name for name in trained_names(model))
    assert not any(isinstance(module, Int8Module) and ".lora_" in name for name, module in model.named_modules())
    twin = copy.deepcopy(model)
    fw.remove(twin, fw.Int8())  # float weights of the values of the codes
    for one in (model, twin):
        one(**batch()).loss.backward()
    for one, other in zip(lora_layers(model).values(), lora_layers(twin).values(), strict=True):
        gradients = (layer.lora_A["default"].weight.grad for layer in (one, other))
        torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-5)  # float32; the same products in another order
    codes = {name: buffer.clone() for name, buffer in model.named_buffers()}
    changed = logits(model)
    lora = next(method for method in order if isinstance(method, LoRA))
    int8 = next(method for method in order if isinstance(method, fw.Int8))
    for first, second in ((int8, lora), (lora, int8)):
        with first.saving(model, tmp_path / "model"), second.saving(model, tmp_path / "model"):
            model.save_pretrained(tmp_path / "model")
        saved = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
        torch.testing.assert_close(logits(saved), changed, rtol=1e-4, atol=1e-4)  # float32, one product or two
        assert all(torch.equal(buffer, codes[name]) for name, buffer in model.named_buffers())
        assert torch.equal(logits(model), changed)


def test_dropout_is_drawn_again_alike_where_chunks_are_computed_again():
    # float64 throughout, unlike in a Llama, whose norms are float32: a difference quotient tells the gradient.
    torch.manual_seed(1)
    model = causal_model("gpt2", torch.float64)
    fw.apply(model, fw.MsT(chunk_size=5, head_chunk_size=7))
    fw.apply(model, LoRA(r=4, lora_dropout=0.3))
    generator = torch.Generator().manual_seed(0)
    trained = [one for one in filled(model).parameters() if one.requires_grad]
    directions = [torch.randn(one.shape, generator=generator, dtype=one.dtype) for one in trained]

    def loss(distance):
        with torch.no_grad():
            for one, direction in zip(trained, directions, strict=True):
                one.add_(direction, alpha=distance)
        torch.manual_seed(5)
        result = model(**batch(), use_cache=False).loss
        with torch.no_grad():
            for one, direction in zip(trained, directions, strict=True):
                one.sub_(direction, alpha=distance)
        return result

    torch.manual_seed(5)
    model(**batch(), use_cache=False).loss.backward()
    slope = sum((one.grad * direction).sum() for one, direction in zip(trained, directions, strict=True))
    step = 1e-6
    # The quotient's own error: some step^2, and 1e-16 * loss / step = 1e-9.
    torch.testing.assert_close(slope, (loss(step) - loss(-step)).detach() / (2 * step), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize(
    ("first", "options"),
    [
        (None, {}),
        (None, {"use_dora": True}),
        (fw.MsT(), {"lora_dropout": 0.1}),
        (fw.MsT(), {"use_dora": True}),
        (fw.Int8(), {}),
    ],
    ids=["plain", "dora", "mst, dropout", "mst, dora", "int8"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_simulated_models_make_a_step_with_the_adapters_of_a_real_one(first, options, dtype):
    shapes = []
    for kind in (torch.device("cpu"), None):
        with simulation(SimulatedDevice("cpu")) if kind is None else torch.device("cpu"):
            model = load_model("tiny", dtype=dtype)
            for method in (first, LoRA(r=4, **options)):
                if method is not None:
                    fw.apply(model, method)
            optimizer = fw.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=1e-3)
            ids = torch.zeros(2, 64, dtype=torch.int64)
            model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            shapes.append([(n, p.shape, p.dtype, p.requires_grad) for n, p in model.named_parameters()])
            shapes[-1].append(optimizer.state_bytes())
    assert shapes[0] == shapes[1]


def test_models_on_the_meta_device_get_adapters_there():
    with torch.device("meta"):
        model = load_model("tiny")
    fw.apply(model, LoRA(r=4))
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    fw.remove(model, LoRA())
    assert not lora_layers(model)


def test_what_cannot_be_changed_is_refused_and_the_model_stays_as_it_was():
    def refused(model, method, message):
        structure, names = repr(model), trained_names(model)
        with pytest.raises(ConfigError, match=message):
            fw.apply(model, method)
        assert repr(model) == structure and trained_names(model) == names

    refused(causal_model("smollm"), LoRA(target_modules=["lm_head"]), "'lm_head', which shares its weight")
    refused(causal_model("llama"), LoRA(target_modules=["embed_tokens"]), "'model.embed_tokens', which is a Embedding")
    refused(causal_model("llama"), LoRA(target_modules=["q_porj"]), "Nearest names: .*q_proj")
    int8 = causal_model("llama")
    fw.apply(int8, fw.Int8())
    refused(int8, LoRA(use_dora=True), "use_dora=True needs the norms of float weights")
    transposed = causal_model("gpt2")
    fw.apply(transposed, fw.Int8())
    refused(transposed, LoRA(), "each is a Int8Conv1D")
    other = causal_model("llama")
    fw.apply(other, S2FT(num_channels=4))
    refused(other, LoRA(), r"has an adapter of PEFT already \(S2FT\)")
    other = causal_model("llama")
    fw.apply(other, LoRA())
    for method in (S2FT(num_channels=4), fw.InRank(), fw.WeLore()):
        refused(other, method, rf"{type(method).__name__}: .* has an adapter of PEFT already \(LORA\)")
    low_rank = causal_model("llama")
    fw.apply(low_rank, fw.InRank())
    refused(low_rank, LoRA(), "'model.layers.0.self_attn.q_proj' is of low rank")


def test_head_with_a_weight_of_its_own_may_have_an_adapter():
    model = causal_model("llama")
    fw.apply(model, LoRA(r=4, target_modules=["lm_head"]))
    fw.apply(model, fw.MsT())
    filled(model)(**batch()).loss.backward()
    assert list(lora_layers(model)) == ["lm_head"]
    assert model.lm_head.lora_A["default"].weight.grad.abs().max() > 0


def test_modules_are_left_out_on_demand():
    model = causal_model("llama")
    fw.apply(model, LoRA(exclude_modules=r".*\.mlp\..*"))
    assert {name.split(".")[3] for name in lora_layers(model)} == {"self_attn"}


def test_fused_experts_are_left_alone_and_named():
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = load_model({"model_type": "mixtral", "num_key_value_heads": 2, "num_local_experts": 2, **sizes})
    report = fw.apply(model, LoRA(r=2))
    left = [row for row in report.section("Modules").rows if row[1].startswith("left alone")]
    assert [row[0] for row in left] == ["model.layers.0.mlp.experts"]
    assert {name.split(".")[-1] for name in lora_layers(model)} >= {"q_proj", "o_proj"}
    assert not any("experts" in name for name in trained_names(model))


def test_options_are_strict():
    assert parse_methods([{"lora": {"r": 8, "use_rslora": True}}])[0].peft_config().use_rslora
    assert parse_methods(["lora"])[0].peft_config().bias == "none"
    with pytest.raises(ConfigError, match="Did you mean 'lora_alpha'"):
        parse_methods([{"lora": {"lora_alfa": 8}}])


def test_a_classifiers_head_learns_whole_and_is_given_back_by_remove():
    from featherweight.models.classifier import load_classifier

    model = load_classifier("tiny", ("no", "yes"))
    before = trained_names(model)
    fw.apply(model, LoRA(r=2))
    trained = trained_names(model)
    assert "score.weight" in trained and all(".lora_" in name for name in trained if name != "score.weight")
    fw.remove(model, LoRA())
    assert trained_names(model) == before
    with pytest.raises(ConfigError, match="select 'score', which is of the head, which learns whole"):
        fw.apply(model, LoRA(r=2, target_modules=["q_proj", "score"]))
