"""Classifiers: a new head on the weights of any model, complete or refused."""

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import featherweight as fw
from featherweight.errors import ConfigError
from featherweight.methods.low_rank_model import low_rank_modules, low_rank_record
from featherweight.models.classifier import (
    classifier_configuration,
    load_classifier,
    new_classifier,
    trained_classes,
)
from featherweight.models.load import load_model
from featherweight.models.save import save_model_folder
from featherweight.models.tokenizer import byte_tokenizer

BERT = {
    "vocab_size": 257,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 64,
}
NAMES = ("no", "perhaps", "yes")


def folder_of(model, path):
    save_model_folder(model, byte_tokenizer(), path)
    return str(path)


@pytest.mark.parametrize("kind", ["BertModel", "BertForMaskedLM"])
def test_an_encoders_weights_stay_and_its_head_is_new(kind, tmp_path):
    pretrained = getattr(transformers, kind)(transformers.BertConfig(**BERT))
    model = load_classifier(folder_of(pretrained, tmp_path / "bert"), NAMES, tokenizer=byte_tokenizer(), seed=1)
    body = getattr(pretrained, "bert", pretrained).state_dict()
    ours = model.bert.state_dict()
    assert all(torch.equal(ours[name], value) for name, value in body.items())
    assert model.classifier.weight.shape == (3, 16) and model.config.id2label == dict(enumerate(NAMES))
    again, other = (load_classifier(str(tmp_path / "bert"), NAMES, seed=seed) for seed in (1, 2))
    assert torch.equal(again.classifier.weight, model.classifier.weight)
    assert not torch.equal(other.classifier.weight, model.classifier.weight)


def test_a_decoder_reads_the_last_token_of_each_text_whatever_is_padded_behind_it():
    tokenizer = byte_tokenizer()
    model = load_classifier("tiny", NAMES, tokenizer=tokenizer).eval()
    assert model.config.pad_token_id == tokenizer.eos_token_id
    ids = torch.tensor([[1, 2, 3, 256, 256], [5, 6, 7, 8, 9]])
    with torch.no_grad():
        both = model(ids, attention_mask=(ids != 256).long()).logits
        alone = model(ids[:1, :3]).logits
    # Sums over masked zeros, in float32.
    assert torch.allclose(both[:1], alone, atol=1e-5)


def test_a_body_with_missing_weights_is_refused(tmp_path):
    path = folder_of(transformers.BertModel(transformers.BertConfig(**BERT)), tmp_path / "bert")
    weights = load_file(f"{path}/model.safetensors")
    weights.pop("encoder.layer.1.output.dense.weight")
    save_file(weights, f"{path}/model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match="lacks 1 weights of a sequence classification model, 'bert.encoder.layer.1"):
        load_classifier(path, NAMES)


def test_a_trained_head_stays_for_as_many_classes_and_is_new_for_others(tmp_path):
    first = load_classifier({"model_type": "bert", **BERT}, NAMES, tokenizer=byte_tokenizer())
    path = folder_of(first, tmp_path / "classifier")
    assert trained_classes(classifier_configuration(path)) == NAMES
    assert torch.equal(load_classifier(path).classifier.weight, first.classifier.weight)
    assert torch.equal(load_classifier(path, NAMES).classifier.weight, first.classifier.weight)
    assert load_classifier(path, ("a", "b")).classifier.weight.shape == (2, 16)


def test_a_model_without_a_trained_head_cannot_be_used_as_one(tmp_path):
    with pytest.raises(ConfigError, match="has no classification head"):
        load_classifier(folder_of(transformers.BertModel(transformers.BertConfig(**BERT)), tmp_path / "bert"))


def test_a_model_of_low_rank_gets_a_head_and_comes_back_from_its_folder(tmp_path):
    causal = load_model("tiny")
    fw.apply(causal, fw.WeLore(rank_reduction=0.5, storage="factored"))
    causal.config.low_rank_config = low_rank_record(causal)
    model = load_classifier(folder_of(causal, tmp_path / "small"), NAMES, tokenizer=byte_tokenizer(), seed=1).eval()
    assert low_rank_modules(model).keys() == low_rank_modules(causal).keys()
    again = load_classifier(folder_of(model, tmp_path / "classifier")).eval()
    ids = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        assert torch.equal(model(ids).logits, again(ids).logits)
        assert torch.equal(model.model(ids).last_hidden_state, causal.eval().model(ids).last_hidden_state)
    with torch.device("meta"):
        planned = new_classifier(classifier_configuration(str(tmp_path / "small"), NAMES))
    assert sum(one.numel() for one in planned.parameters()) == sum(one.numel() for one in model.parameters())
