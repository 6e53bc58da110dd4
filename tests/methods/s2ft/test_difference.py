"""Adapters out of checkpoints: what else has changed is said, not passed over."""

import copy

import peft
import pytest
import torch
from causal_models import causal_model

import featherweight as fw
from featherweight.errors import CheckpointError, NumericsError


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
