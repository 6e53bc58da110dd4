"""What tasks of the next token share: where answers end, and rows that the model can read."""

import pytest
from chat_formats import tokenizer_with

from featherweight.errors import ConfigError
from featherweight.models import byte_tokenizer, load_model
from featherweight.models.templates import choose_template
from featherweight.text.causal_task import Endings
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
