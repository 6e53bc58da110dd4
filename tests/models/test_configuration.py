import json

import pytest
from tiny_models import SMALL_LLAMA

from featherweight.errors import ConfigError
from featherweight.models import (
    load_model,
    model_configuration,
    model_facts,
)
from featherweight.models.tokenizer import byte_tokenizer


def test_configuration_may_be_a_file_and_fills_its_vocabulary_from_the_tokenizer(tmp_path):
    (tmp_path / "small.json").write_text(json.dumps(SMALL_LLAMA))
    source = str(tmp_path / "small.json")
    assert model_facts(source).vocab_size == 257
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["<extra>"])
    assert load_model(source, tokenizer=tokenizer).get_input_embeddings().num_embeddings == 258
    assert load_model({**SMALL_LLAMA, "vocab_size": 300}).get_input_embeddings().num_embeddings == 300


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "model_type is missing"),
        ({"model_type": "lama"}, r"model_type=lama .*Did you mean 'llama'\?"),
        ({**SMALL_LLAMA, "hiden_size": 8}, r"hiden_size=8 .* is no setting of llama; .*Did you mean 'hidden_size'\?"),
        ({**SMALL_LLAMA, "hidden_size": 17}, r"cannot be loaded \(.*hidden size \(17\) is not a multiple"),
        ({**SMALL_LLAMA, "hidden_size": "16"}, r"cannot be loaded \(.*expected int, got str"),
    ],
)
def test_wrong_configuration_gets_one_clear_sentence(settings, message):
    with pytest.raises(ConfigError, match=message) as caught:
        load_model(settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "rope"),
    [
        ({"model_type": "phi", "partial_rotary_factor": 0.25}, {"partial_rotary_factor": 0.25}),
        ({"model_type": "llama", "rope_theta": 5e5}, {"rope_theta": 5e5}),
        ({"model_type": "llama", "rope_scaling": {"rope_type": "linear", "factor": 2.0}}, {"factor": 2.0}),
        ({"model_type": "gpt_neox", "rotary_pct": 0.5}, {"partial_rotary_factor": 0.5}),
    ],
)
def test_settings_of_published_configurations_mean_in_a_mapping_what_they_mean_in_a_folder(settings, rope, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(settings))

    found = model_configuration(settings).rope_parameters

    assert found == model_configuration(str(tmp_path)).rope_parameters
    assert rope.items() <= found.items()
