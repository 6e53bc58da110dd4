"""One adapter out of several."""

import peft
import pytest
import torch
from causal_models import causal_model
from s2ft_models import filled, logits, with_adapters

import featherweight as fw
from featherweight.methods.s2ft.layer import s2ft_layers


def test_fuse_is_exactly_the_weighted_sum():
    model = with_adapters("llama", torch.float64, a={"num_channels": 16}, b={"seed": 1}, c={"seed": 2})
    fw.s2ft.fuse(model, ["a", "b", "c"], [1.0, -0.5, 2.0], name="all")
    fw.s2ft.fuse(model, ["a"], [1.0], name="same")
    fw.s2ft.fuse(model, ["all", "b"], [1.0, 0.5], name="without b")
    fw.s2ft.fuse(model, ["a", "c"], [1.0, 2.0], name="a and c")

    for layer in s2ft_layers(model).values():
        dense = {name: layer.get_delta_weight(name) for name in layer.s2ft_delta}
        # float64: three products and two sums of numbers of size 0.1
        torch.testing.assert_close(dense["all"], dense["a"] - 0.5 * dense["b"] + 2 * dense["c"], rtol=0, atol=1e-16)
        assert torch.equal(dense["same"], dense["a"])
        torch.testing.assert_close(dense["without b"], dense["a and c"], rtol=0, atol=1e-16)
        assert layer.s2ft_delta["all"].requires_grad is False
    assert model.active_adapter == "a"


def test_disjoint_adapters_keep_their_rows_bit_by_bit_and_exclude_makes_them():
    first = fw.S2FTConfig(num_channels=8)
    model = peft.get_peft_model(causal_model("llama"), first, adapter_name="a")
    model.add_adapter("b", fw.S2FTConfig(num_channels=8, exclude=fw.s2ft.Adapter.of_model(model, "a")))
    filled(model, ["a", "b"])
    model.add_weighted_adapter = model.base_model.add_weighted_adapter
    model.add_weighted_adapter(["a", "b"], [1.0, 1.0], "both")

    for layer in s2ft_layers(model).values():
        places = layer.s2ft_indices["both"].tolist()
        assert len(places) == 16
        for name in ("a", "b"):
            rows = [places.index(one) for one in layer.s2ft_indices[name].tolist()]
            assert torch.equal(layer.s2ft_delta["both"][rows], layer.s2ft_delta[name])


@pytest.mark.filterwarnings("ignore:The density")
@pytest.mark.parametrize("kind", ["ties", "dare_linear", "dare_ties", "magnitude_prune"])
def test_other_combinations_are_those_of_peft_on_the_union(kind):
    from peft.utils import merge_utils

    model = with_adapters("llama", a={}, b={"seed": 1})
    torch.manual_seed(0)
    fw.s2ft.fuse(model, ["a", "b"], [1.0, 0.5], name="both", combination_type=kind, density=1.0)

    layer = next(iter(s2ft_layers(model).values()))
    dense = [layer.get_delta_weight(name) for name in ("a", "b")]
    expected = getattr(merge_utils, kind)(dense, torch.tensor([1.0, 0.5]), 1.0)
    torch.testing.assert_close(layer.get_delta_weight("both"), expected)


def test_fused_adapter_is_saved_and_loaded(tmp_path):
    model = with_adapters("llama", a={}, b={"seed": 1})
    fw.s2ft.fuse(model, ["a", "b"], name="both")
    model.set_adapter("both")
    expected = logits(model)
    model.save_pretrained(tmp_path, selected_adapters=["both"])

    loaded = peft.PeftModel.from_pretrained(causal_model("llama"), tmp_path / "both").eval()

    assert torch.equal(logits(loaded), expected)
    for name in ("a", "b"):
        model.save_pretrained(tmp_path, selected_adapters=[name])
    files = {name: fw.s2ft.Adapter.load(tmp_path / name) for name in ("a", "b")}
    fused = fw.s2ft.fuse_adapters(files, [1.0, 1.0])
    for name, change in fused.modules.items():
        assert torch.equal(change.delta, s2ft_layers(model)[name].s2ft_delta["both"])
