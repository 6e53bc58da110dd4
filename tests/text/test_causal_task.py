"""What tasks of the next token share: where answers end, and rows that the model can read."""

import pytest
from chat_formats import tokenizer_with

from featherweight.errors import ConfigError
from featherweight.models import byte_tokenizer, load_model
from featherweight.models.templates import choose_template
from featherweight.text.causal_task import Endings
from featherweight.text.classification_task import ClassificationConfig
from featherweight.text.task import TextConfig, TextTask


def test_answers_end_where_the_template_says_and_rows_are_padded_by_what_there_is():
    tokenizer = tokenizer_with("llama3")
    end = tokenizer.convert_tokens_to_ids("<|eot_id|>")
    assert Endings.of(tokenizer, where="") == Endings((end, tokenizer.eos_token_id), tokenizer.pad_token_id)
    bare = byte_tokenizer()
    choose_template(bare, "chatml")
    bare.eos_token = bare.pad_token = None
    with pytest.raises(ConfigError, match="task chat: tokenizer=.* has no eos_token.*Set eos_token in"):
        Endings.of(bare, where="task chat")
    bare.eos_token = "<|endoftext|>"
    assert Endings.of(bare, where="").pad == bare.eos_token_id


def test_a_models_generation_ends_there_too():
    model = load_model("tiny")
    Endings((5, 7), 3).write(model)
    assert model.generation_config.eos_token_id == [5, 7] and model.generation_config.pad_token_id == 3
    Endings((5,), 3).write(model)
    assert model.generation_config.eos_token_id == 5


def test_rows_longer_than_the_model_reads_are_refused():
    with pytest.raises(ConfigError, match="text task: seq_len=99999 is longer than max_position_embeddings=.*Lower"):
        TextTask(TextConfig(model="tiny", seq_len=99999), seed=0)


def test_rows_beyond_the_models_positions_train_if_these_are_stretched(tmp_path):
    config = TextConfig(model="tiny", seq_len=1500, max_positions=2048, max_train_tokens=3000, max_held_out_tokens=2000)
    task = TextTask(config, seed=0)
    model = task.build_model()
    loss, count = task.loss(model, next(task.batches("train", micro_batch_size=1, seed=0)))
    assert count == 1499 and loss.isfinite()
    task.save_model(model, tmp_path / "model")
    settings = load_model(str(tmp_path / "model")).config
    assert settings.max_position_embeddings == 2048 and settings.rope_parameters["rope_type"] == "yarn"
    assert TextTask.skeleton(config, seed=0).longest == 2048
    with pytest.raises(ConfigError, match="set max_positions=3000 to stretch"):
        TextTask(TextConfig(model="tiny", seq_len=3000, max_positions=2048), seed=0)
    with pytest.raises(ConfigError, match="not there for a classification"):
        ClassificationConfig.parse({"data": "rows.csv", "max_positions": 2048}, where="task")
