import json
import math
import runpy
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import featherweight as fw
from featherweight.errors import CheckpointError, ConfigError
from featherweight.methods.low_rank_model import low_rank_modules
from featherweight.nn.low_rank_linear import LowRankLinear

MODELS = runpy.run_path(str(Path(__file__).parents[1] / "reference" / "causal_models.py"))
causal_model, batch = MODELS["causal_model"], MODELS["batch"]


def logits(model):
    with torch.no_grad():
        return model(input_ids=batch()["input_ids"]).logits


@pytest.mark.parametrize("name", ["llama", "llama with biases", "smollm", "gpt2", "phi3"])
@pytest.mark.parametrize("storage", ["auto", "factored"])
def test_a_saved_folder_loads_bit_for_bit_and_merges_into_an_ordinary_one(name, storage, tmp_path):
    model = causal_model(name).eval()
    fw.apply(model, fw.WeLore(rank_reduction=0.5, min_dim=8, storage=storage))
    model.save_pretrained(tmp_path / "small")

    loaded = fw.load_low_rank(tmp_path / "small")

    assert torch.equal(logits(loaded), logits(model))
    assert type(loaded) is type(model) and not loaded.training
    assert low_rank_modules(loaded).keys() == low_rank_modules(model).keys()
    stored = sum(p.numel() for p in loaded.parameters())
    assert stored == sum(p.numel() for p in model.parameters())
    again = tmp_path / "again"
    loaded.save_pretrained(again)
    assert torch.equal(logits(fw.load_low_rank(again)), logits(model))

    assert fw.merge_low_rank(loaded) == len(low_rank_modules(model))
    loaded.save_pretrained(tmp_path / "dense")
    dense = AutoModelForCausalLM.from_pretrained(tmp_path / "dense")
    assert "low_rank_config" not in json.loads((tmp_path / "dense" / "config.json").read_text())
    # Logits of size 10 through two layers in float32.
    torch.testing.assert_close(logits(dense), logits(model), rtol=0, atol=1e-4)


def test_load_model_knows_compressed_folders(tmp_path):
    from featherweight.models import load_model, model_facts
    from featherweight.models.tokenizer import byte_tokenizer

    model = causal_model("llama")
    fw.apply(model, fw.WeLore(rank_reduction=0.5, min_dim=8))
    model.save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    loaded = load_model(str(tmp_path))
    assert low_rank_modules(loaded) and loaded.training
    assert model_facts(str(tmp_path)).parameters == sum(p.numel() for p in loaded.parameters())
    assert load_model(str(tmp_path), dtype=torch.bfloat16).lm_head.weight.dtype == torch.bfloat16


@pytest.mark.parametrize("damage", ["missing", "unexpected", "mismatched"])
def test_a_damaged_folder_is_refused(damage, tmp_path):
    from safetensors.torch import load_file, save_file

    model = causal_model("llama")
    fw.apply(model, fw.WeLore(rank_reduction=0.5, min_dim=8, storage="factored"))
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    key = next(key for key in tensors if key.endswith("U.weight"))
    if damage == "missing":
        del tensors[key]
    elif damage == "unexpected":
        tensors["model.layers.0.self_attn.extra.weight"] = torch.zeros(2)
    else:
        tensors[key] = torch.zeros(3, 3)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=f"1 {damage} keys"):
        fw.load_low_rank(tmp_path)


@pytest.mark.parametrize("damage", ["cut weights", "missing shard", "cut config", "no model_type", "no folder"])
def test_a_folder_that_cannot_be_read_is_one_sentence(damage, tmp_path):
    folder = tmp_path / "small"
    model = causal_model("llama")
    fw.apply(model, fw.WeLore(rank_reduction=0.5, min_dim=8))
    model.save_pretrained(folder, max_shard_size="50KB")
    file, config = sorted(folder.glob("*.safetensors"))[0], folder / "config.json"
    if damage == "cut weights":
        file.write_bytes(file.read_bytes()[:-40])
    elif damage == "missing shard":
        file.unlink()
    elif damage == "cut config":
        config.write_text("{")
    elif damage == "no model_type":
        config.write_text(json.dumps({k: v for k, v in json.loads(config.read_text()).items() if k != "model_type"}))
    else:
        folder = tmp_path / "nowhere"
    with pytest.raises(CheckpointError, match=f"load_low_rank: folder={folder} cannot be read") as caught:
        fw.load_low_rank(folder)
    assert len(str(caught.value).splitlines()) == 1


def test_other_folders_are_refused(tmp_path):
    model = causal_model("llama")
    model.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="has no low_rank_config"):
        fw.load_low_rank(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for record, message in (
        ({"version": 99, "rank_pattern": {}}, "newer than this program"),
        (
            {"version": 1, "rank_pattern": {"model.nope": 3}, "storage_pattern": {"model.nope": "factored"}},
            "model.nope",
        ),
        ({"version": 1, "rank_pattern": {"model.nope": 3}, "storage_pattern": {}}, "a rank and a storage of each"),
        ({"version": 1}, "The record is damaged"),
        ({"version": 1, "rank_pattern": {"a": True}, "storage_pattern": {"a": "factored"}}, "rank=True"),
        ({"version": 1, "rank_pattern": {"a": 3}, "storage_pattern": {"a": "woven"}}, "storage='woven'"),
    ):
        (tmp_path / "config.json").write_text(json.dumps({**config, "low_rank_config": record}))
        with pytest.raises(CheckpointError, match=message):
            fw.load_low_rank(tmp_path)


def test_an_activation_survives_the_folder_and_forbids_merging(tmp_path):
    model = causal_model("llama").eval()
    linear = model.model.layers[0].mlp.up_proj
    layer = LowRankLinear.from_linear(linear, 5)
    layer.activation = "silu"
    model.model.layers[0].mlp.up_proj = layer
    from featherweight.methods.low_rank_model import record_in_config

    record_in_config(model)
    model.save_pretrained(tmp_path)
    loaded = fw.load_low_rank(tmp_path)
    assert torch.equal(logits(loaded), logits(model))
    with pytest.raises(ConfigError, match="silu"):
        fw.merge_low_rank(loaded)
    assert math.isfinite(float(logits(loaded).sum()))
