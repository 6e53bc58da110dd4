"""Damaged adapters are refused wherever one is read, merged, summed, exchanged, served or exported."""

import json

import peft
import pytest
import torch
from causal_models import batch, causal_model
from safetensors.torch import load_file, save_file

import featherweight as fw
from featherweight.errors import CheckpointError, ConfigError, FeatherweightError, NumericsError
from featherweight.methods.s2ft.base_slices import ChannelChange
from featherweight.methods.s2ft.layer import s2ft_layers
from featherweight.methods.s2ft.merge import merge_into
from featherweight.methods.s2ft.soundness import require_sound

DAMAGES = {
    "twice": (CheckpointError, "twice"),
    "far": (CheckpointError, "expected channels of 0 to"),
    "negative": (CheckpointError, "names channel -1"),
    "nan": (NumericsError, "holds NaNs"),
    "width": (CheckpointError, "wide at"),
    "rows": (CheckpointError, "channels for 8 rows"),
}


def damaged(change, damage):
    """Return a change with one thing wrong."""
    indices, delta = change.indices.clone(), change.delta.detach().clone()
    if damage == "twice":
        indices[1] = indices[0]
    elif damage == "far":
        indices[-1] = 10_000
    elif damage == "negative":
        indices[0] = -1
    elif damage == "nan":
        delta[1, 2] = torch.nan
    elif damage == "width":
        delta = delta[:, :-1]
    elif damage == "rows":
        indices = indices[:-1]
    return ChannelChange(change.axis, indices, delta)


def adapted():
    model = peft.get_peft_model(causal_model("llama"), fw.S2FTConfig(num_channels=8)).eval()
    for layer in s2ft_layers(model).values():
        torch.nn.init.normal_(layer.s2ft_delta["default"], std=0.1)
    return model


def with_damage(damage):
    """Return an adapter of which one module is damaged."""
    whole = fw.s2ft.Adapter.of_model(adapted())
    name = "model.layers.1.mlp.down_proj"
    return fw.s2ft.Adapter({**whole.modules, name: damaged(whole.modules[name], damage)}, whole.config)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("way", ["load", "peft", "merge", "fuse", "bank", "export"])
def test_a_damaged_adapter_is_refused_everywhere_and_names_its_module(way, damage, tmp_path):
    kind, message = DAMAGES[damage]
    adapter = with_damage(damage)
    adapter.save(tmp_path / "a")
    base = causal_model("llama").eval()
    before = {name: weight.clone() for name, weight in base.state_dict().items()}
    ways = {
        "load": lambda: fw.s2ft.Adapter.load(tmp_path / "a"),
        "peft": lambda: peft.PeftModel.from_pretrained(causal_model("llama"), tmp_path / "a"),
        "merge": lambda: merge_into(base, adapter),
        "fuse": lambda: fw.s2ft.fuse_adapters({"a": adapter}, [1.0]),
        "bank": lambda: fw.s2ft.AdapterBank(base, tmp_path).prefetch(["a"]),
        "export": lambda: fw.s2ft.export_lora(adapter, tmp_path / "lora"),
    }

    with pytest.raises(kind, match=message) as caught:
        ways[way]()

    assert "model.layers.1.mlp.down_proj" in str(caught.value)
    assert all(torch.equal(before[name], weight) for name, weight in base.state_dict().items())
    assert not (tmp_path / "lora").exists()


@pytest.mark.parametrize("damage", ["twice", "far", "nan"])
@pytest.mark.parametrize("way", ["switch", "merge_adapter", "merge_and_unload", "fuse"])
def test_a_model_whose_adapter_is_damaged_stays_as_it_was(way, damage):
    model = adapted()
    last = list(s2ft_layers(model).values())[-1]
    change = damaged(last.change("default"), damage)
    last.s2ft_delta["default"].data, last.s2ft_indices["default"] = change.delta, change.indices
    before = [layer.get_base_layer().weight.clone() for layer in s2ft_layers(model).values()]
    ways = {
        "switch": lambda: fw.s2ft.switch(model, "default"),
        "merge_adapter": model.merge_adapter,
        "merge_and_unload": model.merge_and_unload,
        "fuse": lambda: fw.s2ft.fuse(model, ["default"], name="again"),
    }

    with pytest.raises(FeatherweightError, match=DAMAGES[damage][1]):
        ways[way]()

    for layer, weight in zip(s2ft_layers(model).values(), before, strict=True):
        assert torch.equal(layer.get_base_layer().weight, weight)


def test_a_head_that_is_not_finite_is_refused_too(tmp_path):
    model = peft.get_peft_model(causal_model("llama"), fw.S2FTConfig(num_channels=8, modules_to_save=["lm_head"]))
    model.save_pretrained(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    tensors = load_file(file)
    tensors["base_model.model.lm_head.weight"][0, 0] = torch.inf
    save_file(tensors, file)

    with pytest.raises(NumericsError, match=r"holds NaNs or infinite numbers in 'base_model\.model\.lm_head\.weight'"):
        fw.s2ft.Adapter.load(tmp_path)


def test_large_finite_numbers_whose_sum_overflows_are_sound():
    # Mutation: to trust the sum alone refuses them.
    delta = torch.full((2, 4), 6e4, dtype=torch.float16)
    require_sound({"down_proj": ChannelChange("input", torch.tensor([0, 3]), delta)}, "merge: adapter")


def test_sound_adapters_pass_and_other_kinds_of_numbers_do_not(tmp_path):
    model = adapted()
    fw.s2ft.Adapter.of_model(model).require_sound("test")
    broken = ChannelChange("input", torch.tensor([0.0, 1.0]), torch.zeros(2, 4))
    with pytest.raises(CheckpointError, match=r"expected \(S,\) whole numbers"):
        require_sound({"down_proj": broken}, "test: adapter")
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["base_fingerprint"]  # by which a file alone tells channels beyond the axis
    assert peft.PeftModel.from_pretrained(causal_model("llama"), tmp_path)(**batch()).logits.isfinite().all()


@pytest.mark.parametrize("weight", [float("nan"), float("inf")])
def test_adapters_are_not_fused_with_weights_that_are_not_finite(weight):
    model = adapted()
    with pytest.raises(ConfigError, match="are not all finite; expected numbers"):
        fw.s2ft.fuse(model, ["default"], [weight], name="sum")
    with pytest.raises(ConfigError, match="are not all finite; expected numbers"):
        fw.s2ft.fuse_adapters({"a": fw.s2ft.Adapter.of_model(model)}, [weight])
