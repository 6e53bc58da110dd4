import pickle
import runpy
from pathlib import Path

import pytest
import torch

import featherweight as fw
from featherweight.errors import CheckpointError, ConfigError
from featherweight.methods.welore.official import load_low_rank_state_dict

MODELS = runpy.run_path(str(Path(__file__).parents[2] / "reference" / "causal_models.py"))
causal_model, batch = MODELS["causal_model"], MODELS["batch"]


def compressed(name="llama"):
    model = causal_model(name).eval()
    fw.apply(model, fw.WeLore(rank_reduction=0.5, min_dim=8, storage="factored", exclude_modules=["o_proj"]))
    return model


def renamed(state, form):
    """Name the factors as the official codes do."""
    if form == "WeLore":
        return dict(state)
    if form == "ASVD4LLM":
        return {k.replace(".U.", ".ALinear.").replace(".V.", ".BLinear."): v for k, v in state.items()}
    return {k.replace("_proj.U.", "_u_proj.").replace("_proj.V.", "_v_proj."): v for k, v in state.items()}


@pytest.mark.parametrize("form", ["WeLore", "ASVD4LLM", "SVD-LLM"])
@pytest.mark.parametrize("name", ["llama", "smollm"])
def test_checkpoints_of_others_give_the_same_logits(form, name, tmp_path):
    model = compressed(name)
    state = renamed(model.state_dict(), form)
    if name == "smollm":
        del state["lm_head.weight"]  # tied
    torch.save(state, tmp_path / "checkpoint.pt")
    inputs = batch()["input_ids"]

    loaded = load_low_rank_state_dict(causal_model(name).eval(), tmp_path / "checkpoint.pt")

    assert torch.equal(loaded(inputs).logits, model(inputs).logits)
    loaded.save_pretrained(tmp_path / "folder")
    assert torch.equal(fw.load_low_rank(tmp_path / "folder")(inputs).logits, model(inputs).logits)


def test_biases_that_the_official_code_dropped_are_none():
    model = compressed("llama with biases")
    state = {k: v for k, v in model.state_dict().items() if not k.endswith("U.bias")}
    loaded = load_low_rank_state_dict(causal_model("llama with biases"), state)
    assert loaded.model.layers[0].self_attn.q_proj.bias is None
    assert loaded.model.layers[0].self_attn.o_proj.bias is not None


@pytest.mark.parametrize("change", ["lacks", "has", "shapes", "none"])
def test_what_does_not_fit_is_refused(change):
    state = dict(compressed().state_dict())
    key = "model.layers.0.mlp.up_proj.V.weight"
    if change == "lacks":
        del state["model.norm.weight"]
    elif change == "has":
        state["model.more.weight"] = torch.zeros(2)
    elif change == "shapes":
        state[key] = state[key][:-1]
    else:
        state = causal_model("llama").state_dict()
    message = {
        "lacks": "lacks 'model.norm",
        "has": "'model.more.weight' too much",
        "shapes": "up_proj.*factors of shapes",
    }
    with pytest.raises(CheckpointError, match=message.get(change, "no pair of thin matrices")):
        load_low_rank_state_dict(causal_model("llama"), state)


def test_a_pickled_model_needs_consent(tmp_path):
    model = compressed()
    path = tmp_path / "model.pt"
    torch.save({"model": model, "tokenizer": None}, path)
    with pytest.raises(ConfigError, match="allow_pickle=True"):
        load_low_rank_state_dict(causal_model("llama"), path)
    loaded = load_low_rank_state_dict(causal_model("llama").eval(), path, allow_pickle=True)
    inputs = batch()["input_ids"]
    assert torch.equal(loaded(inputs).logits, model(inputs).logits)
    assert pickle  # the module that torch.load falls back to


@pytest.mark.parametrize("name", ["nowhere.safetensors", "nowhere.bin", "cut.safetensors", "cut.bin"])
def test_a_missing_or_cut_file_is_one_sentence(name, tmp_path):
    if name.startswith("cut"):
        (tmp_path / name).write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(CheckpointError, match="source=.* cannot be read") as caught:
        load_low_rank_state_dict(causal_model("llama"), tmp_path / name)
    assert len(str(caught.value).splitlines()) == 1
