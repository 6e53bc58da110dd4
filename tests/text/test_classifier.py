"""Texts to class probabilities: encoding, padding, cuts, and models that cannot."""

import json

import pytest
import torch
from transformers import BertConfig

from featherweight.errors import ConfigError
from featherweight.models.classifier import load_classifier
from featherweight.models.save import save_model_folder
from featherweight.models.tokenizer import byte_tokenizer
from featherweight.text.classifier import TextClassifier, TextEncoder, class_logits
from featherweight.text.labelled import LabelledText

SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
ENCODER = {"model_type": "bert", "max_position_embeddings": 32, **SIZES}


def texts(*words):
    return [LabelledText(text, None, "", f"line {number}") for number, text in enumerate(words, 1)]


def test_texts_are_padded_behind_their_end_and_long_ones_are_cut_and_known_as_such():
    encoder = TextEncoder(byte_tokenizer(), BertConfig(max_position_embeddings=6, **SIZES), None, where="here")
    rows = encoder.encode(texts("ab", "abcdefgh"))
    assert [(len(row.ids), row.length, row.is_cut) for row in rows] == [(2, 2, False), (6, 8, True)]
    batch = encoder.batch(rows)
    assert batch["input_ids"].tolist() == [[97, 98, 256, 256, 256, 256], [97, 98, 99, 100, 101, 102]]
    assert batch["attention_mask"].sum(dim=1).tolist() == [2, 6]
    assert batch["token_type_ids"].shape == (2, 6)


def test_more_tokens_than_the_model_reads_and_a_tokenizer_without_padding_are_refused():
    configuration = BertConfig(max_position_embeddings=6, **SIZES)
    with pytest.raises(ConfigError, match="^here: max_tokens=7 is longer than the 6 tokens that the model reads"):
        TextEncoder(byte_tokenizer(), configuration, 7, where="here")
    tokenizer = byte_tokenizer()
    tokenizer.pad_token = None
    with pytest.raises(ConfigError, match="neither a padding nor an end-of-text token"):
        TextEncoder(tokenizer, configuration, None, where="here")


def test_a_text_of_which_nothing_is_left_is_refused_with_its_place():
    tokenizer = byte_tokenizer()
    encoder = TextEncoder(tokenizer, BertConfig(**SIZES), None, where="here")
    with pytest.raises(ConfigError, match="^line 2: text='' has no token"):
        encoder.encode(texts("a", ""))


@pytest.mark.parametrize("source", [ENCODER, "tiny"], ids=["encoder", "decoder"])
def test_probabilities_do_not_depend_on_who_stands_beside_a_text(source, tmp_path):
    tokenizer = byte_tokenizer()
    model = load_classifier(source, ("no", "yes"), tokenizer=tokenizer)
    save_model_folder(model, tokenizer, tmp_path / "model")
    classifier = TextClassifier(str(tmp_path / "model"), device="cpu")
    together = classifier(texts("a", "a longer text", "b"))
    for one, text in zip(together, ("a", "a longer text", "b"), strict=True):
        (alone,) = classifier(texts(text))
        # Sums over masked zeros, in float32.
        assert one.label == alone.label and one.probabilities == pytest.approx(alone.probabilities, abs=1e-5)
        assert one.probability == max(one.probabilities) and sum(one.probabilities) == pytest.approx(1, abs=1e-6)


def test_a_decoder_that_was_saved_without_a_padding_token_takes_several_texts(tmp_path):
    tokenizer = byte_tokenizer()
    save_model_folder(load_classifier("tiny", ("no", "yes"), tokenizer=tokenizer), tokenizer, tmp_path / "model")
    description = tmp_path / "model" / "config.json"
    settings = json.loads(description.read_text())
    description.write_text(json.dumps(settings | {"pad_token_id": None}))
    assert len(TextClassifier(str(tmp_path / "model"), device="cpu")(texts("a", "bcd"))) == 2


def test_logits_are_float32_whatever_the_weights_are():
    model = load_classifier("tiny", ("no", "yes"), dtype=torch.bfloat16, tokenizer=byte_tokenizer())
    assert class_logits(model, {"input_ids": torch.ones((1, 3), dtype=torch.int64)}).dtype == torch.float32
