"""Adapters out of checkpoints: what else has changed is said, not passed over."""

import copy

import peft
import pytest
import torch
from causal_models import causal_model
from s2ft_models import with_adapters

import featherweight as fw
from featherweight.errors import CheckpointError, NumericsError
from featherweight.methods.s2ft.layer import s2ft_layers


def test_tensors_that_the_base_lacks_are_named():
    base = causal_model("llama")
    tuned = copy.deepcopy(base)
    tuned.model.layers[0].mlp.down_proj.weight.data[:, 3] += 1
    state = {**tuned.state_dict(), "score.weight": torch.zeros(2, 32)}
    with pytest.raises(CheckpointError, match="1 tensors that the base lacks, 'score.weight' among them"):
        fw.s2ft.diff(base, state)
    adapted = peft.get_peft_model(copy.deepcopy(base), fw.S2FTConfig(num_channels=8))
    with pytest.raises(CheckpointError, match="that the base lacks"):
        fw.s2ft.diff(base, adapted.base_model.model)


def test_a_diverged_checkpoint_and_a_cut_base_are_refused():
    base = causal_model("llama")
    tuned = copy.deepcopy(base)
    tuned.model.layers[0].mlp.down_proj.weight.data[:, 3] = torch.nan
    with pytest.raises(NumericsError, match="diff: tuned checkpoint holds NaNs"):
        fw.s2ft.diff(base, tuned)
    fw.apply(base, fw.WeLore(rank_reduction=0.5, min_dim=16))
    with pytest.raises(CheckpointError, match="is of low rank"):
        fw.s2ft.diff(base, base)


@pytest.mark.parametrize("name", ["mlp.up_proj", "self_attn.v_proj"])
def test_rows_are_imported_only_when_one_says_that_they_were_trained(name):
    base = causal_model("llama", num_key_value_heads=4)
    tuned = copy.deepcopy(base)
    for number in range(2):
        tuned.get_submodule(f"model.layers.{number}.mlp.down_proj").weight.data[:, 5] += 1
    tuned.get_submodule(f"model.layers.1.{name}").weight.data[7] += 1

    with pytest.raises(CheckpointError, match=rf"rows of 'model\.layers\.1\.{name}' differ.*allow_rows=True"):
        fw.s2ft.import_official(tuned, base)

    adapter = fw.s2ft.import_official(tuned, base, allow_rows=True)
    change = adapter.modules[f"model.layers.1.{name}"]
    assert change.axis == "output" and change.indices.tolist() == [7]
    assert set(adapter.modules) == {*(f"model.layers.{n}.mlp.down_proj" for n in range(2)), f"model.layers.1.{name}"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_diff_recovers_what_gives_the_tuned_weights_exactly(architecture, dtype, tmp_path):
    base = causal_model(architecture, dtype)
    model = with_adapters(architecture, dtype, default={})
    tuned = copy.deepcopy(model).merge_and_unload()

    adapter = fw.s2ft.diff(base, tuned)
    adapter.save(tmp_path)
    merged = peft.PeftModel.from_pretrained(causal_model(architecture, dtype), tmp_path).merge_and_unload()

    for name, layer in s2ft_layers(model).items():
        assert torch.equal(adapter.modules[name].indices, layer.s2ft_indices["default"])
    for key, tensor in tuned.state_dict().items():
        assert torch.equal(merged.state_dict()[key], tensor), key


def test_diff_refuses_what_is_no_sparse_change():
    base = causal_model("llama")
    changes = {
        "no linear weight": lambda m: m.model.norm.weight.data.add_(1),
        "sparse change": lambda m: m.model.layers[0].mlp.up_proj.weight.data.add_(1),
        "expected some": lambda m: None,
    }
    for message, change in changes.items():
        tuned = copy.deepcopy(base)
        change(tuned)
        with pytest.raises(CheckpointError, match=message):
            fw.s2ft.diff(base, tuned)


def test_import_official_recovers_indices_and_changes_from_permuted_weights():
    shape = {"num_key_value_heads": 4}
    base = causal_model("llama", torch.float64, **shape)
    tuned = copy.deepcopy(base)
    generator = torch.Generator().manual_seed(0)
    expected = {}
    for number, layer in enumerate(tuned.model.layers):
        heads, channels = torch.tensor([1 + number]), torch.tensor([3, 11, 40])
        o, down = layer.self_attn.o_proj.weight.data, layer.mlp.down_proj.weight.data
        for name, weight, indices in (
            ("self_attn.o_proj", o, (heads[:, None] * 8 + torch.arange(8)).flatten()),
            ("mlp.down_proj", down, channels),
        ):
            # Multiples of 1/64 of size below 1, added to such: no sum is rounded, so that "exactly" means exactly.
            delta = torch.randint(-60, 60, (len(indices), 32), generator=generator).double() / 64
            weight[:, indices] += delta.T
            expected[f"model.layers.{number}.{name}"] = (indices, delta)
        order = torch.tensor([*heads, *(h for h in range(4) if h not in heads)])
        rows = (order[:, None] * 8 + torch.arange(8)).flatten()
        for projection in ("q_proj", "k_proj", "v_proj"):
            weight = getattr(layer.self_attn, projection).weight
            weight.data = weight.data[rows]
        layer.self_attn.o_proj.weight.data = o[:, rows]
        order = torch.tensor([*channels, *(c for c in range(48) if c not in channels)])
        for projection in ("gate_proj", "up_proj"):
            getattr(layer.mlp, projection).weight.data = getattr(layer.mlp, projection).weight.data[order]
        layer.mlp.down_proj.weight.data = down[:, order]

    adapter = fw.s2ft.import_official(tuned.state_dict(), base)

    assert adapter.modules.keys() == expected.keys()
    for name, (indices, delta) in expected.items():
        assert adapter.modules[name].indices.tolist() == indices.tolist()
        torch.testing.assert_close(adapter.modules[name].delta, delta, rtol=0, atol=1e-15)
    with pytest.raises(CheckpointError, match="equal none of the base"):
        fw.s2ft.import_official(
            tuned.state_dict(),
            causal_model("llama", torch.float64, **shape, hidden_act="relu")
            .double()
            .apply(lambda m: torch.nn.init.ones_(m.weight) if isinstance(m, torch.nn.Linear) else None),
        )
