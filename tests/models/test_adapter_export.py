import json
import re
import runpy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import featherweight as fw
from featherweight.cli import run
from featherweight.errors import CheckpointError, ConfigError
from featherweight.models.adapter_export import export_adapter
from featherweight.models.tokenizer import byte_tokenizer

MODELS = runpy.run_path(str(Path(__file__).parents[1] / "reference" / "causal_models.py"))
SIZES = {"vocab_size": 257, "hidden_size": 64, "intermediate_size": 96}
IDS = torch.arange(1, 9)[None]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base") / "model"
    MODELS["causal_model"]("llama", **SIZES).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def lora(base, folder, **options):
    """Write a LoRA adapter with random factors, and return the logits of its model."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(3)
    config = LoraConfig(target_modules=["q_proj", "down_proj"], init_lora_weights=False, **options)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).eval()
    model.save_pretrained(folder)
    return model(IDS).logits


def logits(base, adapter):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(adapter)).eval()(IDS).logits


@pytest.mark.parametrize(
    "options",
    [
        {"r": 8, "lora_alpha": 16},
        {"r": 6, "use_rslora": True},
        {"r": 4, "rank_pattern": {"layers.1.mlp.down_proj": 12}, "alpha_pattern": {"q_proj": 3}},
    ],
    ids=["plain", "rslora", "patterns"],
)
def test_one_rank_and_one_factor_compute_what_the_adapter_computed(base, tmp_path, options):
    expected = lora(base, tmp_path / "adapter", **options)
    facts = export_adapter(str(tmp_path / "adapter"), tmp_path / "served")
    config = json.loads((tmp_path / "served" / "adapter_config.json").read_text())
    assert config["r"] == config["lora_alpha"] == facts["rank"]
    assert not config.get("rank_pattern") and not config.get("use_rslora")
    # Factors are rounded once to float32.
    assert torch.allclose(logits(base, tmp_path / "served"), expected, rtol=0, atol=1e-5)
    # vLLM's loader reads modules and factors off the names, and wants the same rank everywhere.
    tensors = load_file(tmp_path / "served" / "adapter_model.safetensors")
    names = {
        re.fullmatch(r"base_model\.model\.(model\.layers\.\d\.\w+\.\w+)\.lora_[AB]\.weight", name)[1]
        for name in tensors
    }
    assert names == set(config["target_modules"]) and len(tensors) == 2 * len(names)
    assert {tensor.shape[int("lora_B" in name)] for name, tensor in tensors.items()} == {facts["rank"]}
    assert f"--max-lora-rank {8 if facts['rank'] <= 8 else 16} " in facts["serve with"]


def test_s2ft_becomes_lora_exactly_and_chat_and_generate_open_adapters(base, tmp_path, capsys):
    from featherweight.models import load_model

    model = load_model(str(base)).eval()
    method = fw.methods.parse_methods([{"s2ft": {"r_equivalent": 2}}])[0]
    fw.apply(model, method)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.1)
    expected = model(IDS).logits
    model.config._name_or_path = str(base)
    with method.saving(model, tmp_path / "model"):
        pass
    export_adapter(str(tmp_path / "adapter"), tmp_path / "served")
    found = logits(base, tmp_path / "served")
    assert torch.allclose(found, expected, rtol=0, atol=1e-5)
    for name in ("adapter", "served"):
        config = tmp_path / name / "adapter_config.json"
        settings = json.loads(config.read_text())
        config.write_text(json.dumps({**settings, "base_model_name_or_path": str(base)}))
        assert run(["generate", str(tmp_path / name), "--prompt", "abc", "--max-new-tokens", "8"]) == 0
    answers = capsys.readouterr().out
    half = len(answers) // 2
    assert answers[:half] == answers[half:] and half > 0


def test_what_vllm_does_not_serve_is_refused_by_name(base, tmp_path, capsys):
    lora(base, tmp_path / "dora", r=4, use_dora=True)
    with pytest.raises(ConfigError, match="use_dora=True of the adapter .* is none that vLLM serves.*--to hf:bf16"):
        export_adapter(str(tmp_path / "dora"), tmp_path / "served")
    lora(base, tmp_path / "wide", r=600)
    with pytest.raises(ConfigError, match="rank=600 of .* is more than vLLM serves; expected at most 512"):
        export_adapter(str(tmp_path / "wide"), tmp_path / "served")
    with pytest.raises(ConfigError, match="is no adapter; expected a folder with adapter_config.json"):
        export_adapter(str(base), tmp_path / "served")
    (tmp_path / "wide" / "adapter_model.safetensors").write_bytes(b"cut")
    with pytest.raises(CheckpointError, match="adapter_model.safetensors cannot be read"):
        export_adapter(str(tmp_path / "wide"), tmp_path / "served")
    assert not (tmp_path / "served").exists()
