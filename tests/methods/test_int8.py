"""The method: which weights become int8, what is said about it, and the way back."""

import copy
import warnings

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

import featherweight as fw
from featherweight.errors import ConfigError, NumericsError
from featherweight.memory.tracker import StorageTracker
from featherweight.methods import dequantized_state_dict, parse_methods
from featherweight.nn.int8_linear import Int8Conv1D, Int8Embedding, Int8Linear
from featherweight.quant.int8_weight import int8_weight_of
from featherweight.training.footprint import predict_bytes

VOCABULARY = 60
MATRICES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def llama(dtype=torch.float32, seed=0, **options):
    torch.manual_seed(seed)
    settings = {
        "hidden_size": 32, "intermediate_size": 72, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 1, "vocab_size": VOCABULARY, "tie_word_embeddings": True,
    }  # fmt: skip
    return LlamaForCausalLM(LlamaConfig(**{**settings, **options})).to(dtype).train()


def gpt2():
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=VOCABULARY, n_positions=32)).train()


def tokens(step=0, rows=3, length=10):
    return torch.randint(0, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(step))


def train(model, optimizer, steps, start=0):
    losses = []
    for step in range(start, start + steps):
        optimizer.zero_grad()
        loss = model(tokens(step % 3), labels=tokens(step % 3)).loss
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def float_twin(model):
    twin = copy.deepcopy(model)
    fw.remove(twin, fw.Int8())
    return twin


@pytest.mark.parametrize("make", [llama, gpt2])
def test_linear_layers_become_int8_and_the_model_computes_with_their_values(make):
    model = make().eval()
    parameters = dict(model.named_parameters())
    report = fw.apply(model, fw.Int8())
    kinds = {type(module) for module in model.modules()} & {Int8Linear, Int8Conv1D, Int8Embedding}
    assert kinds == {Int8Linear if make is llama else Int8Conv1D}
    assert type(model.get_output_embeddings()) is nn.Linear and type(model.get_input_embeddings()) is nn.Embedding
    assert all(parameter is parameters[name] for name, parameter in model.named_parameters())
    with torch.no_grad():
        assert torch.equal(model(tokens()).logits, float_twin(model)(tokens()).logits)
    assert "left alone" not in str(report)


def test_the_report_says_bytes_errors_and_what_was_left_alone():
    model = llama()
    before = copy.deepcopy(model)
    report = fw.apply(model, fw.Int8(target_modules=[*MATRICES, "lm_head"], exclude_modules=["k_proj"]))
    rows = {row[0]: row for row in report.sections[0].rows}
    assert rows["lm_head"][1] == "left alone: shares its weight with 'model.embed_tokens', which is not selected"
    assert not any("k_proj" in name for name in rows)
    name = "model.layers.0.mlp.gate_proj"
    weight, source = model.get_submodule(name).int8_weight(), before.get_submodule(name).weight.detach()
    error = weight.dequantize() - source
    assert rows[name][2:4] == [4 * 72 * 32, 72 * 32 + 4 * 72]
    assert rows[name][4] == pytest.approx(float(error.abs().max()))
    assert rows[name][5] == pytest.approx(float(error.square().mean().sqrt()), rel=1e-5)


@pytest.mark.parametrize("tie", [True, False])
def test_embeddings_and_head_on_demand_tied_ones_stay_tied(tie, tmp_path):
    model = llama(tie_word_embeddings=tie)
    fw.apply(model, fw.Int8(embeddings=True))
    assert type(model.lm_head) is Int8Linear and type(model.model.embed_tokens) is Int8Embedding
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tie
    assert sum(int8_weight_of(p) is not None for p in model.parameters()) == 14 + (1 if tie else 2)
    optimizer = fw.optim.GaLoreAdamW(fw.optim.param_groups(model, rank=8), lr=1e-2)
    losses = train(model, optimizer, 30)
    assert losses[-1] < 0.8 * losses[0]
    twin = copy.deepcopy(model.eval())
    assert (twin.lm_head.weight is twin.model.embed_tokens.weight) == tie
    with torch.no_grad():
        assert torch.equal(twin(tokens()).logits, float_twin(model)(tokens()).logits)
    model.tie_weights()  # as resizing and loading in transformers do
    with torch.no_grad():
        assert torch.equal(twin(tokens()).logits, model(tokens()).logits)


def test_it_may_come_after_the_optimizer_and_in_the_middle_of_a_run():
    model = llama()
    optimizer = fw.optim.GaLoreAdamW(fw.optim.param_groups(model, rank=8), lr=1e-2)
    first = train(model, optimizer, 5)
    fw.apply(model, fw.Int8())
    codes = model.model.layers[0].mlp.up_proj.weight_codes.clone()
    last = train(model, optimizer, 20, start=5)
    assert last[-1] < first[-1]
    assert not torch.equal(codes, model.model.layers[0].mlp.up_proj.weight_codes)
    values = {n: m.int8_weight().dequantize() for n, m in model.named_modules() if isinstance(m, Int8Linear)}
    fw.remove(model, fw.Int8())
    for name, value in values.items():
        assert torch.equal(model.get_submodule(name).weight, value)
    assert train(model, optimizer, 5, start=25)[-1] < first[-1]


def test_a_second_time_wrong_models_and_changed_modules_are_refused():
    model = llama()
    fw.apply(model, fw.Int8())
    with pytest.raises(ConfigError, match="applied to this model already"):
        fw.apply(model, fw.Int8())
    fw.remove(model, fw.Int8())
    with pytest.raises(ConfigError, match="not applied"):
        fw.remove(model, fw.Int8())
    with pytest.raises(ConfigError, match="no int8 form"):
        fw.apply(nn.Sequential(nn.Conv2d(3, 3, 3)), fw.Int8(target_modules=["0"]))
    model.lm_head.forward = model.lm_head.forward
    model.model.layers[1].self_attn.q_proj.forward = lambda x: x
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ConfigError, match=r"q_proj' has another forward"):
        fw.apply(model, fw.Int8())
    del model.model.layers[1].self_attn.q_proj.forward
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 4] = float("nan")
        before["model.layers.1.mlp.up_proj.weight"][3, 4] = float("nan")
    with pytest.raises(NumericsError, match=r"layers\.1\.mlp\.up_proj\.weight"):
        fw.apply(model, fw.Int8())
    assert not any(isinstance(m, Int8Linear) for m in model.modules())
    assert all(torch.equal(value, before[n]) or "up_proj" in n for n, value in model.state_dict().items())
    with pytest.raises(ConfigError, match="group_size"):
        fw.Int8.parse({"group_size": 0}, where="test")


def test_a_recipe_names_it_and_a_single_layer_will_do():
    (method,) = parse_methods([{"int8": {"target_modules": ["q_proj"], "group_size": 128}}])
    assert method == fw.Int8(target_modules=["q_proj"], group_size=128)
    layer = nn.Linear(300, 20)
    fw.apply(layer, fw.Int8())
    assert type(layer) is Int8Linear


def test_bytes_are_known_on_the_meta_device():
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(num_hidden_layers=1)).to(torch.bfloat16)
    matrices = sum(p.numel() for n, p in model.named_parameters() if "proj" in n)
    rest = sum(p.numel() for n, p in model.named_parameters() if "proj" not in n)
    fw.apply(model, fw.Int8())
    optimizer = fw.optim.GaLoreAdamW(fw.optim.param_groups(model, rank=64), lr=1e-3, state_bits=8)
    expected = 2 * rest + matrices * (256 + 4) // 256 + 2 * 7  # one element for each of seven handles
    assert predict_bytes(model, optimizer)["weights"] == expected


@pytest.mark.parametrize("layerwise", [False, True])
@pytest.mark.parametrize("embeddings", [False, True])
def test_predicted_bytes_are_those_that_the_tracker_measures(layerwise, embeddings):
    model = llama(torch.bfloat16, hidden_size=64, intermediate_size=320)
    fw.apply(model, fw.Int8(embeddings=embeddings))
    optimizer = fw.optim.GaLoreAdamW(fw.optim.param_groups(model, rank=8), lr=1e-3, state_bits=8)
    with fw.optim.layerwise(model, optimizer) if layerwise else warnings.catch_warnings():
        train(model, optimizer, 2)
        optimizer.zero_grad()
        predicted = predict_bytes(model, optimizer)
        with StorageTracker(model, optimizer) as tracker:
            train(model, optimizer, 1)
    measured = {name: tracker.max_by_category.get(name, 0) for name in predicted}
    assert {**measured, "gradients": 0} == {**predicted, "gradients": 0}
    # Layer-wise the last gradient may still be alive when the next one comes.
    assert measured["gradients"] == predicted["gradients"] or layerwise


def test_converting_holds_one_float_weight_at_a_time():
    model = nn.Sequential(*(nn.Linear(512, 512, bias=False) for _ in range(6)))
    before = 6 * 4 * 512 * 512
    with StorageTracker(model) as tracker:
        fw.apply(model, fw.Int8())
    # codes of one layer beside its values, and a few tiles of 2^16 floats
    assert tracker.peak_bytes < before + 512 * 512 * 1.1 + 8 * 4 * 2**16
    assert tracker.live_bytes < before / 3


# ---- files


@pytest.mark.filterwarnings("ignore:.*TypedStorage is deprecated")
@pytest.mark.parametrize("embeddings", [False, True])
@pytest.mark.parametrize("make", [llama, gpt2])
def test_an_exported_model_loads_anywhere_with_the_values_of_the_codes(make, embeddings, tmp_path):
    model = make().eval()
    fw.apply(model, fw.Int8(embeddings=embeddings))
    model.save_pretrained(tmp_path, state_dict=dequantized_state_dict(model))
    twin = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    assert type(twin.lm_head) is nn.Linear
    with torch.no_grad():
        assert torch.equal(twin(tokens()).logits, model(tokens()).logits)
    state = dequantized_state_dict(model, torch.bfloat16)
    assert state.keys() == make().state_dict().keys()
    assert {value.dtype for value in state.values()} == {torch.bfloat16}


@pytest.mark.filterwarnings("ignore:.*TypedStorage is deprecated")
@pytest.mark.parametrize("embeddings", [False, True])
def test_save_pretrained_keeps_codes_that_a_converted_model_loads_bit_for_bit(embeddings, tmp_path):
    from safetensors.torch import load_file

    model = llama()
    fw.apply(model, fw.Int8(embeddings=embeddings))
    model.save_pretrained(tmp_path)
    twin = llama(seed=1)
    fw.apply(twin, fw.Int8(embeddings=embeddings))
    missing, unexpected = twin.load_state_dict(load_file(tmp_path / "model.safetensors"), strict=False)
    assert unexpected == [] and set(missing) <= {"lm_head.weight"}
    for name, value in model.state_dict().items():
        assert torch.equal(value, twin.state_dict()[name])
    # And an ordinary checkpoint of the model before.
    twin.load_state_dict(llama().state_dict())
    for name, value in model.state_dict().items():
        assert torch.equal(value, twin.state_dict()[name])


# ---- together with others


@pytest.mark.parametrize("order", ["int8 first", "mst first"])
@pytest.mark.parametrize("embeddings", [False, True])
def test_it_composes_with_the_mini_sequence_transformer(order, embeddings):
    model, tokens_BL = llama(), tokens(rows=1, length=200)
    methods = [fw.Int8(embeddings=embeddings), fw.MsT(chunk_size=64, head_chunk_size=64)]
    for method in methods if order == "int8 first" else reversed(methods):
        fw.apply(model, method)
    plain = llama()
    fw.apply(plain, methods[0])
    losses = [one(tokens_BL, labels=tokens_BL).loss for one in (model, plain)]
    assert torch.allclose(*losses, rtol=1e-5)
    for loss in losses:
        loss.backward()
    for (name, a), b in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert float((a.grad - b.grad).norm()) <= 1e-4 * float(b.grad.norm()), name


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("embeddings", [False, True])
def test_layerwise_with_checkpoints_has_the_bits_of_ordinary_steps(use_reentrant, embeddings):
    def run(layerwise):
        model = llama()
        fw.apply(model, fw.Int8(embeddings=embeddings))
        model.activation_checkpointing_enable({"use_reentrant": use_reentrant})
        optimizer = fw.optim.GaLoreAdamW(fw.optim.param_groups(model, rank=8, update_proj_gap=3), lr=1e-2)
        if layerwise:
            with fw.optim.layerwise(model, optimizer):
                train(model, optimizer, 5)
        else:
            train(model, optimizer, 5)
        return model.state_dict()

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*None of the inputs have requires_grad")
        ordinary, inside = run(False), run(True)
    assert all(torch.equal(value, inside[name]) for name, value in ordinary.items())
