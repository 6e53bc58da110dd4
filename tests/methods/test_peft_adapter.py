"""The two files of an adapter, and models that have one already."""

import json

import peft
import pytest
import torch
from causal_models import causal_model
from safetensors import safe_open

from featherweight.errors import CheckpointError, ConfigError
from featherweight.methods.peft_adapter import plain_settings, require_no_adapter, write_files


def test_both_files_are_written_and_an_older_configuration_is_replaced(tmp_path):
    for rank in (4, 8):
        write_files(tmp_path / "new" / "adapter", {"r": rank}, {"a": torch.full((2,), float(rank))}, {"version": "1"})
    assert json.loads((tmp_path / "new" / "adapter" / "adapter_config.json").read_text()) == {"r": 8}
    with safe_open(tmp_path / "new" / "adapter" / "adapter_model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt", "version": "1"} and file.get_tensor("a").tolist() == [8.0, 8.0]
    assert len(list((tmp_path / "new" / "adapter").iterdir())) == 2


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(CheckpointError, match="cannot be written .* Choose another folder"):
        write_files(tmp_path / "file", {}, {"a": torch.zeros(1)})


def test_sets_become_sorted_lists():
    assert plain_settings({"target_modules": {"v", "q"}, "r": 4}) == {"target_modules": ["q", "v"], "r": 4}


def test_a_model_with_an_adapter_is_refused_by_its_kind_and_a_plain_one_is_not():
    model = causal_model("llama")
    require_no_adapter(model, "InRank")
    tuned = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(ConfigError, match=r"InRank: .* has an adapter of PEFT already \(LORA\)"):
        require_no_adapter(tuned, "InRank")
