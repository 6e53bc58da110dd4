"""Low-rank folders are refused by other loaders; dense copies open everywhere and compute the same."""

import json
import runpy
import shutil
from collections import namedtuple
from pathlib import Path

import peft
import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

import featherweight as fw
from featherweight.errors import CheckpointError, ConfigError
from featherweight.methods.sealed_folder import seal_folder
from featherweight.models import export
from featherweight.models.load import load_model, load_tokenizer
from featherweight.models.save import save_model_folder
from featherweight.models.tokenizer import byte_tokenizer
from featherweight.text.compress import compress

MODELS = runpy.run_path(str(Path(__file__).parents[1] / "reference" / "causal_models.py"))
TOKENS = torch.arange(40).view(2, 20)
SIZES = {"llama": {"hidden_size": 64, "intermediate_size": 96}, "gpt2": {"n_embd": 64}}


@pytest.fixture(params=["from file to file", "in memory"])
def small(request, tmp_path):
    """Return a folder of low rank, written in either way."""
    name = "llama" if request.param == "in memory" else "gpt2"
    model = MODELS["causal_model"](name, vocab_size=257, **SIZES[name])
    if request.param == "in memory":
        fw.apply(model, fw.WeLore(rank_reduction=0.5, min_dim=32))
        save_model_folder(model, byte_tokenizer(), tmp_path / "small")
    else:
        save_model_folder(model, byte_tokenizer(), tmp_path / "model")
        compress(str(tmp_path / "model"), tmp_path / "small", fw.WeLore(rank_reduction=0.5, min_dim=32))
    return tmp_path / "small"


def test_other_loaders_refuse_a_low_rank_folder_and_ours_opens_it(small):
    named = {"gpt2": transformers.GPT2LMHeadModel, "llama": transformers.LlamaForCausalLM}
    before = json.loads((small / "config.json").read_text())["low_rank_config"]["sealed"]
    with pytest.raises(ValueError, match="featherweight_low_rank"):
        AutoModelForCausalLM.from_pretrained(small)
    with pytest.raises(ValueError, match="featherweight_low_rank"):
        transformers.AutoConfig.from_pretrained(small)
    # A class that is named looks at no model_type.
    with pytest.raises(Exception, match=r"str|low rank"):
        named[before["model_type"]].from_pretrained(small)
    assert json.loads((small / "config.json").read_text())["architectures"] != before["architectures"]
    assert len(AutoTokenizer.from_pretrained(small)) == 257
    model = load_model(str(small))
    assert model.config.model_type == before["model_type"] and model.config.low_rank_config["rank_pattern"]
    assert torch.equal(fw.load_low_rank(small)(TOKENS).logits, model.eval()(TOKENS).logits)


def test_a_low_rank_folder_that_is_loaded_and_saved_again_is_sealed_once_more(small, tmp_path):
    save_model_folder(load_model(str(small)), load_tokenizer(str(small)), tmp_path / "again")
    first, second = (json.loads((folder / "config.json").read_text()) for folder in (small, tmp_path / "again"))
    assert first["low_rank_config"]["sealed"] == second["low_rank_config"]["sealed"]
    seal_folder(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "config.json").read_text()) == second


def test_a_folder_of_before_still_opens(small, tmp_path):
    model = load_model(str(small)).eval()
    type(model).save_pretrained(model, tmp_path / "old")  # transformers alone knows no seal
    assert json.loads((tmp_path / "old" / "config.json").read_text())["model_type"] == model.config.model_type
    assert torch.equal(load_model(str(tmp_path / "old")).eval()(TOKENS).logits, model(TOKENS).logits)


def test_a_damaged_seal_is_one_sentence(small):
    path = small / "config.json"
    settings = json.loads(path.read_text())
    del settings["low_rank_config"]["sealed"]["model_type"]
    path.write_text(json.dumps(settings))
    with pytest.raises(CheckpointError, match="sealed names model_type=None"):
        fw.load_low_rank(small)


@pytest.mark.parametrize("name", export.DTYPES)
def test_a_dense_copy_opens_in_transformers_with_the_logits_of_the_low_rank_model(small, tmp_path, name):
    dtype = export.DTYPES[name]
    facts = export.export_folder(str(small), tmp_path / "dense", dtype=dtype)
    copy, loading = AutoModelForCausalLM.from_pretrained(tmp_path / "dense", output_loading_info=True)
    assert copy.dtype == dtype and not loading["missing_keys"] and "low_rank_config" not in copy.config.to_dict()
    assert facts["parameters"] == sum(parameter.numel() for parameter in copy.parameters())
    expected = load_model(str(small)).eval()(TOKENS).logits
    # A weight is rounded once: half a unit in the last place of its type, and logits are sums of a few hundred of them.
    error = {"fp32": 1e-5, "bf16": 0.05, "fp16": 0.01}[name]
    assert (copy.float().eval()(TOKENS).logits - expected).norm() < error * expected.norm()
    assert AutoTokenizer.from_pretrained(tmp_path / "dense")("Hi")["input_ids"] == [72, 105]


def test_large_weights_are_written_in_shards(tmp_path, monkeypatch):
    monkeypatch.setattr(export, "SHARD_SIZE", "40KB")
    model = MODELS["causal_model"]("llama", vocab_size=257)
    save_model_folder(model, byte_tokenizer(), tmp_path / "model")
    facts = export.export_folder(str(tmp_path / "model"), tmp_path / "copy", dtype=torch.float32)
    assert facts["files of weights"] > 1 and (tmp_path / "copy" / "model.safetensors.index.json").exists()
    copy = AutoModelForCausalLM.from_pretrained(tmp_path / "copy").eval()
    assert torch.equal(copy(TOKENS).logits, model.eval()(TOKENS).logits)


@pytest.mark.parametrize("kind", ["lora", "s2ft"])
def test_an_adapter_is_merged_into_its_base(tmp_path, kind):
    model = MODELS["causal_model"]("llama", vocab_size=257)
    save_model_folder(model, byte_tokenizer(), tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    options = (
        peft.LoraConfig(target_modules=["q_proj", "down_proj"], r=4, init_lora_weights=False)
        if kind == "lora"
        else fw.S2FTConfig()
    )
    tuned = peft.get_peft_model(base, options)
    with torch.no_grad():
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
    tuned.save_pretrained(tmp_path / "adapter")
    export.export_folder(str(tmp_path / "adapter"), tmp_path / "merged", dtype=torch.float32)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    expected = tuned.eval()(TOKENS).logits
    torch.testing.assert_close(merged(TOKENS).logits, expected, rtol=1e-4, atol=1e-4)  # sums in another order
    assert not torch.allclose(expected, model.eval()(TOKENS).logits, atol=1e-2)
    (tmp_path / "base").rename(tmp_path / "moved")
    with pytest.raises(ConfigError, match="does not exist"):
        export.export_folder(str(tmp_path / "adapter"), tmp_path / "new", dtype=torch.float32)
    export.export_folder(str(tmp_path / "adapter"), tmp_path / "new", dtype=torch.float32, base=str(tmp_path / "moved"))


def test_what_is_there_a_full_disk_and_a_needless_base_are_refused_and_nothing_is_left(tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="is there already"):
        export.export_folder("tiny", tmp_path / "mine", dtype=torch.float32)
    with pytest.raises(ConfigError, match="is no adapter"):
        export.export_folder("tiny", tmp_path / "out", dtype=torch.float32, base="tiny")
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9, 10**6))
    with pytest.raises(ConfigError, match=r"needs about \d+\.\d\d MiB, and its disk has"):
        export.export_folder("tiny", tmp_path / "out", dtype=torch.float32)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
