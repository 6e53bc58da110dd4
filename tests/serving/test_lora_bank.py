import json
import shutil

import peft
import pytest
import torch
from tiny_models import prompt, tiny_model

from featherweight.errors import CheckpointError, ConfigError
from featherweight.serving.lora_bank import LoraBank


def saved(folder, seed, **options):
    """A LoRA adapter of the tiny model, with values."""
    base = tiny_model("llama")
    config = peft.LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "up_proj"], **options})
    import copy

    model = peft.get_peft_model(copy.deepcopy(base), config)
    draw = torch.Generator().manual_seed(seed)
    for key, weight in model.named_parameters():
        if "lora_" in key:
            weight.data.copy_(torch.randn(weight.shape, generator=draw) * 0.3)
    model.save_pretrained(folder)
    return model.eval()


def test_every_row_gets_the_logits_of_its_own_adapter_and_the_base_is_left_as_it_was(tmp_path):
    base, ids = tiny_model("llama"), prompt(4, 7)
    settings = {
        "plain": {},
        "stabilised": {"use_rslora": True, "r": 9},
        "patterns": {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"up_proj": 3}},
    }
    models = {name: saved(tmp_path / name, seed, **one) for seed, (name, one) in enumerate(settings.items())}
    bank = LoraBank(base, {name: tmp_path / name for name in settings})
    with torch.no_grad():
        plain = base(input_ids=ids).logits
        rows = ["plain", "__base__", "patterns", "stabilised"]
        with bank.using(rows):
            mixed = base(input_ids=ids).logits
        for place, name in enumerate(rows):
            expected = plain if name == "__base__" else models[name](input_ids=ids).logits
            # Sums of float32 in another order. Mutation: the scaling of another adapter is off by its first digit.
            torch.testing.assert_close(mixed[place], expected[place], rtol=1e-4, atol=1e-4)
        assert torch.equal(base(input_ids=ids).logits, plain)
        bank.close()
        with bank.using(rows):
            assert torch.equal(base(input_ids=ids).logits, plain)


def test_what_rows_cannot_mix_and_what_belongs_to_another_model_is_refused(tmp_path):
    base = tiny_model("llama")
    saved(tmp_path / "a", 0)
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    for change, kind, message in (
        ({"use_dora": True}, ConfigError, "holds use_dora"),
        ({}, CheckpointError, "changes '.*' from"),
    ):
        folder = tmp_path / "b"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(tmp_path / "a", folder)
        (folder / "adapter_config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(kind, match=message):
            LoraBank(base if change else tiny_model("mamba2"), {"b": folder})
    (folder / "adapter_model.safetensors").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="adapter=b cannot be read"):
        LoraBank(base, {"b": folder})
