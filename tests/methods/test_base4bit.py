"""Frozen 4-bit weights: their values, their bytes, adapters beside them, the model that is saved, and resume."""

import copy

import pytest
import torch
from torch import nn

import featherweight as fw
from featherweight.errors import ConfigError
from featherweight.models import load_model, load_tokenizer, save_model_folder
from featherweight.training import train
from featherweight.training.estimate import estimate_memory
from featherweight.training.events import Callback
from featherweight.training.footprint import predict_bytes
from featherweight.training.loop import Loop
from featherweight.training.recipe import Recipe

bnb = pytest.importorskip("bitsandbytes", exc_type=ImportError)

SMALL = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 2}
SMALL |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("base") / "model"
    save_model_folder(load_model(SMALL, seed=1), load_tokenizer("bytes"), place)
    return str(place)


def recipe(folder, adapter="lora", **changes):
    task = {"name": "text", "model": folder, "seq_len": 32, "max_train_tokens": 3000, "max_held_out_tokens": 200}
    settings = {"task": task, "methods": ["base4bit", adapter], "optimizer": {"name": "adamw", "lr": 1e-2}}
    return Recipe.parse({**settings, "steps": 4, "micro_batch_size": 2, "memory_steps": [2], **changes})


def test_values_are_those_of_bitsandbytes_and_the_backward_pass_goes_through_them():
    torch.manual_seed(0)
    layer = nn.Linear(96, 40)
    codes, state = bnb.functional.quantize_4bit(layer.weight.data, quant_type="nf4", compress_statistics=True)
    values = bnb.functional.dequantize_4bit(codes, state)
    model = nn.ModuleDict({"one": layer})
    fw.apply(model, fw.Base4bit())
    assert isinstance(model["one"], bnb.nn.Linear4bit)
    x = torch.randn(3, 5, 96, requires_grad=True)
    twin = x.detach().clone().requires_grad_()
    y, expected = model["one"](x), nn.functional.linear(twin, values, layer.bias)
    (y * y).sum().backward()
    (expected * expected).sum().backward()
    assert torch.equal(y, expected)
    # Another order of the same product: float32 sums of 40 numbers.
    torch.testing.assert_close(x.grad, twin.grad, rtol=1e-5, atol=1e-5)
    assert torch.equal(model["one"].to_linear().weight, values)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model["one"](x).dtype == torch.bfloat16
    model["one"](x.bfloat16()).sum().backward()


def test_the_head_and_embeddings_stay_and_removing_gives_floats_again(folder):
    model = load_model(folder)
    names = list(model.state_dict())
    fw.apply(model, fw.Base4bit())
    assert model.lm_head.weight.dtype == model.model.embed_tokens.weight.dtype == torch.float32
    assert not any(one.requires_grad for one in model.parameters())
    again = copy.deepcopy(model)
    again.load_state_dict(model.state_dict())
    fw.remove(model, fw.Base4bit())
    assert list(model.state_dict()) == names and all(one.requires_grad for one in model.parameters())
    ids = torch.arange(12).reshape(2, 6)
    assert torch.equal(model(ids).logits, again(ids).logits)


@pytest.mark.parametrize("adapter", ["lora", {"s2ft": {"r_equivalent": 4, "multiple_of": 1}}])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_step_takes_the_bytes_that_were_predicted_and_simulated(folder, adapter, precision):
    one = recipe(folder, adapter, precision=precision)
    loop = Loop(one)
    for _ in range(2):
        loop.step()
    measured = loop.footprint
    predicted = predict_bytes(loop.model, loop.optimizer)
    assert measured.measured["weights"] == predicted["weights"]
    assert measured.measured["optimizer_state"] == predicted["optimizer_state"]
    estimate = estimate_memory(None, one, device="cpu")
    assert estimate.predicted == predicted
    assert estimate.timeline.peak(2).by_category["weights"] == measured.at_peak["weights"]
    assert estimate.timeline.peak(2).size_bytes == measured.peak_bytes


@pytest.mark.parametrize("adapter", ["lora", {"s2ft": {"r_equivalent": 4, "multiple_of": 1}}])
def test_the_run_folder_gets_a_dense_model_with_the_change_merged_into_floats(folder, adapter, tmp_path):
    run = train(recipe(folder, adapter), out=tmp_path / "run", callbacks=[])
    assert run.summary.held_out["held_out_loss"] < run.summary.before_training["held_out_loss"]
    dense = load_model(str(tmp_path / "run/model"))
    weight = dense.model.layers[0].self_attn.o_proj.weight
    assert type(dense.model.layers[0].self_attn.o_proj) is nn.Linear and weight.dtype == torch.float32
    loop = Loop(recipe(folder, adapter))
    for _ in range(4):
        loop.step()
    ids = torch.arange(32).reshape(1, 32)
    loop.model.eval(), dense.eval()
    # Mutation: a change merged into the codes is rounded to the 16 values of NF4 and differs in the first digit.
    # The order of two float32 products differs: some 1e-6 of logits of size 1.
    torch.testing.assert_close(dense(ids).logits, loop.model(ids).logits, rtol=1e-4, atol=1e-4)
    assert (tmp_path / "run/adapter/adapter_config.json").exists()
    assert any(isinstance(one, bnb.nn.Linear4bit) for one in loop.model.modules())


@pytest.mark.parametrize("adapter", ["lora", {"s2ft": {"r_equivalent": 4, "multiple_of": 1}}])
def test_a_resumed_run_is_bitwise_the_one_that_was_not_interrupted(folder, adapter, tmp_path):
    whole = train(recipe(folder, adapter), out=tmp_path / "whole", callbacks=[])

    checkpointed = recipe(folder, adapter, checkpoint_every=2)
    with pytest.raises(KeyboardInterrupt):
        train(checkpointed, out=tmp_path / "cut", callbacks=[StopAfter(3)])
    resumed = train(checkpointed, out=tmp_path / "cut", resume=True, callbacks=[])
    assert resumed.summary.held_out == whole.summary.held_out
    ours, theirs = (load_model(str(tmp_path / name / "model")).state_dict() for name in ("whole", "cut"))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


class StopAfter(Callback):
    """Ends a run at a step, without a word to the loop."""

    def __init__(self, step):
        self.step = step

    def on_step(self, event):
        if event.step == self.step:
            raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        (["base4bit"], "methods=.* train none; expected an adapter behind it"),
        (["base4bit", "mst"], "train none"),
        (["lora", "base4bit"], "comes behind LoRA"),
        (["base4bit", "int8", "lora"], "Int8 trains weights in int8"),
        (["base4bit", "welore", "lora"], "WeLore trains factors"),
        (["base4bit", "inrank"], "InRank trains weights whose rank grows"),
    ],
)
def test_what_makes_no_sense_with_frozen_weights_is_refused(folder, methods, message):
    with pytest.raises(ConfigError, match=message):
        recipe(folder, methods=methods).build_methods()


def test_doubtful_models_are_refused(folder):
    model = load_model(folder)
    fw.apply(model, fw.LoRA(r=2))
    with pytest.raises(ConfigError, match="has an adapter of PEFT already"):
        fw.apply(model, fw.Base4bit())
    with pytest.raises(ConfigError, match="has no weight that can be frozen in 4 bits"):
        fw.apply(nn.Sequential(nn.Conv2d(1, 1, 1)), fw.Base4bit(target_modules=["0"]))
    model = load_model(folder)
    fw.apply(model, fw.Base4bit())
    with pytest.raises(ConfigError, match="use_dora=True needs the norms"):
        fw.apply(model, fw.LoRA(use_dora=True))


def test_chunks_and_checkpointing_compute_the_same_gradients(folder):
    losses = []
    for changes in ({}, {"methods": ["base4bit", "lora", "mst"]}, {"activation_checkpointing": True}):
        loop = Loop(recipe(folder, **{"memory_steps": [], **changes}))
        losses.append([loop.step()["loss"] for _ in range(3)])
    for other in losses[1:]:
        assert other == pytest.approx(losses[0], rel=1e-5)  # the order of float32 sums
