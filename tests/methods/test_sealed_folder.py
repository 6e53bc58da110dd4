import copy
import pickle
import runpy
from pathlib import Path

import pytest
import torch

import featherweight as fw
from featherweight.errors import CheckpointError, ConfigError
from featherweight.methods import parse_methods
from featherweight.models import load_model

MODELS = runpy.run_path(str(Path(__file__).parents[1] / "reference" / "causal_models.py"))
SIZES = {"vocab_size": 257, "hidden_size": 64, "intermediate_size": 96}
IDS = torch.arange(1, 9)[None]
LOW_RANK = [{"welore": {"rank_reduction": 0.4, "min_dim": 32}}, {"inrank": {}}]
RAW = ["lora", "s2ft", "int8"]


def changed(entry):
    model = MODELS["causal_model"]("llama", **SIZES).eval()
    (method,) = parse_methods([entry])
    fw.apply(model, method)
    return model, method


@pytest.mark.parametrize("entry", [*LOW_RANK, *RAW], ids=str)
def test_what_save_pretrained_writes_of_a_changed_model_opens_nowhere_with_random_weights(entry, tmp_path):
    from transformers import AutoModelForCausalLM, LlamaForCausalLM

    model, method = changed(entry)
    model.save_pretrained(tmp_path / "raw")
    for kind in (AutoModelForCausalLM, LlamaForCausalLM):
        with pytest.raises(Exception, match="featherweight|num_hidden_layers"):
            kind.from_pretrained(tmp_path / "raw")
    if entry in LOW_RANK:
        assert torch.equal(load_model(str(tmp_path / "raw")).eval()(IDS).logits, model(IDS).logits)
    else:
        with pytest.raises((ConfigError, CheckpointError), match="raw weights of a model that featherweight has"):
            load_model(str(tmp_path / "raw"))
    # A copy of the model knows it, too.
    copy.deepcopy(model).save_pretrained(tmp_path / "copy")
    assert "featherweight" in (tmp_path / "copy" / "config.json").read_text()
    with pytest.raises(ConfigError, match="push_to_hub=True would upload"):
        model.save_pretrained(tmp_path / "hub", push_to_hub=True)
    if entry not in LOW_RANK:
        fw.remove(model, method)
        model.save_pretrained(tmp_path / "plain")
        assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path / "plain")(IDS).logits, model(IDS).logits)
        assert "save_pretrained" not in vars(model)


def test_a_model_of_low_rank_that_was_loaded_is_sealed_when_it_is_saved_again(tmp_path):
    from transformers import AutoModelForCausalLM

    model, _ = changed(LOW_RANK[0])
    model.save_pretrained(tmp_path / "first")
    again = fw.load_low_rank(tmp_path / "first")
    again.save_pretrained(tmp_path / "second")
    with pytest.raises(ValueError, match="featherweight_low_rank"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "second")
    fw.merge_low_rank(again)
    again.save_pretrained(tmp_path / "merged")
    assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path / "merged")(IDS).logits, again(IDS).logits)


def test_what_is_written_plain_opens_everywhere_and_a_changed_model_can_be_pickled(tmp_path):
    from transformers import AutoModelForCausalLM

    model, _ = changed("mst")
    model.save_pretrained(tmp_path / "kept")
    assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path / "kept")(IDS).logits, model(IDS).logits)
    model, _ = changed("int8")
    model.save_pretrained(tmp_path / "dense", state_dict=fw.methods.dequantized_state_dict(model))
    AutoModelForCausalLM.from_pretrained(tmp_path / "dense")
    model, _ = changed(LOW_RANK[0])
    assert torch.equal(pickle.loads(pickle.dumps(model))(IDS).logits, model(IDS).logits)
