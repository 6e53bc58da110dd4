"""A real pretrained model with grouped queries: export to stock PEFT, switches in bfloat16."""

import subprocess
import sys

import peft
import pytest
import torch

import featherweight as fw
from featherweight.methods.s2ft.layer import s2ft_layers
from featherweight.models import load_model, load_tokenizer

pytestmark = pytest.mark.slow


def filled(model, names):
    generator = torch.Generator().manual_seed(0)
    for layer in s2ft_layers(model).values():
        for name in names:
            delta = layer.s2ft_delta[name]
            delta.data.copy_(torch.randn(delta.shape, generator=generator) * 0.02)
    return model


def test_export_gives_the_same_logits_in_stock_peft_and_the_models_own_order_of_heads_stays(tmp_path):
    base, tokenizer = load_model("smollm2").eval(), load_tokenizer("smollm2")
    base.save_pretrained(tmp_path / "base")
    ids = tokenizer("The capital of France is", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        plain = base(ids).logits
        model = filled(peft.get_peft_model(base, fw.S2FTConfig(num_channels=64)), ["default"]).eval()
        expected = model(ids).logits
    assert (expected - plain).abs().max() > 0.1
    fw.s2ft.export_lora(model, tmp_path / "lora")
    torch.save({"ids": ids, "logits": expected}, tmp_path / "expected.pt")
    program = (
        "import sys, torch, peft, transformers\n"
        f"base = transformers.AutoModelForCausalLM.from_pretrained({str(tmp_path / 'base')!r})\n"
        f"model = peft.PeftModel.from_pretrained(base, {str(tmp_path / 'lora')!r}).eval()\n"
        f"known = torch.load({str(tmp_path / 'expected.pt')!r})\n"
        "with torch.no_grad():\n"
        "    found = model(known['ids']).logits\n"
        "assert 'featherweight' not in sys.modules\n"
        "print(float((found - known['logits']).abs().max() / known['logits'].abs().max()))"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, timeout=600)

    # float32 sums in another order, through 30 layers
    assert float(done.stdout) < 1e-5, done.stderr[-2000:]


def test_a_hundred_switches_among_overlapping_adapters_leave_the_bytes_of_bf16_weights_unchanged():
    base = load_model("smollm2").to(torch.bfloat16).eval()
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    names = [f"a{seed}" for seed in range(5)]
    model = peft.get_peft_model(base, fw.S2FTConfig(channel_ratio=0.3, unit="channel"), adapter_name=names[0])
    for seed, name in enumerate(names[1:], start=1):
        model.add_adapter(name, fw.S2FTConfig(channel_ratio=0.3, unit="channel", seed=seed))
    filled(model, names)
    generator = torch.Generator().manual_seed(1)
    for _ in range(100):
        fw.s2ft.switch(model, names[int(torch.randint(5, (), generator=generator))])
    assert not torch.equal(
        base.model.layers[0].mlp.down_proj.base_layer.weight, before["model.layers.0.mlp.down_proj.weight"]
    )
    fw.s2ft.switch(model, None)

    for name, tensor in model.unload().state_dict().items():
        assert torch.equal(tensor.view(torch.uint8), before[name].view(torch.uint8)), name
