"""What is said at the start of a run: a model that is called pretrained must know something."""

import json
import math

import pytest

from featherweight.errors import ConfigError
from featherweight.models import load_model, load_tokenizer, save_model_folder
from featherweight.training import train
from featherweight.training.events import Callback

SMALL = {"model_type": "llama", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
SMALL |= {"num_attention_heads": 2, "num_key_value_heads": 2}


class Notices(Callback):
    def __init__(self):
        self.said = []

    def on_notice(self, event):
        self.said.append((event.step, event.notice))


def recipe(model, **task):
    few = {"seq_len": 32, "max_train_tokens": 2000, "max_held_out_tokens": 200}
    task = {"name": "text", "model": model, **few, **task}
    return {"task": task, "steps": 1, "micro_batch_size": 1, "save_model": False, "memory_steps": []}


@pytest.fixture
def empty_headed(tmp_path):
    """Return a folder whose weights were never trained, as an interrupted download or a wrong script leaves one."""
    save_model_folder(load_model(SMALL), load_tokenizer("bytes"), tmp_path / "model")
    return str(tmp_path / "model")


@pytest.mark.parametrize("evaluate_at_start", [True, False])
def test_a_pretrained_model_that_guesses_is_told_on_screen_and_in_the_report(
    empty_headed, tmp_path, capsys, evaluate_at_start
):
    run = train({**recipe(empty_headed), "evaluate_at_start": evaluate_at_start}, out=tmp_path / "run")
    text = " ".join(capsys.readouterr().out.split())
    assert "note: The loss at the start" in text and f"is near {math.log(257):.2f}" in text
    assert "called pretrained" in (tmp_path / "run/report.html").read_text()
    assert run.summary.task["weights"] == "pretrained"
    # Mutation: the notice at the end instead of the start: the user would see it after the training.
    listener = Notices()
    train({**recipe(empty_headed), "evaluate_at_start": evaluate_at_start}, out=tmp_path / "two", callbacks=[listener])
    assert [step for step, _ in listener.said] == [0 if evaluate_at_start else 1]


def test_a_new_model_guesses_without_a_word(tmp_path):
    listener = Notices()
    for number, one in enumerate((recipe(SMALL), recipe("tiny", weights="random"))):
        run = train(one, out=tmp_path / str(number), callbacks=[listener])
        assert run.summary.task["weights"] == "random"
    assert listener.said == []


def test_a_shape_does_not_train_unnoticed_and_leaves_nothing_behind(tmp_path):
    with pytest.raises(ConfigError, match="model=llama-60m is a shape.*weights: random"):
        train(recipe("llama-60m"), out=tmp_path / "run", callbacks=[])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("method", ["lora", "s2ft", "welore"])
def test_methods_that_change_little_are_refused_on_random_weights(method, tmp_path):
    with pytest.raises(ConfigError, match="the weights of model=smollm2-135m are random"):
        train({**recipe("smollm2-135m", weights="random"), "methods": [method]}, out=tmp_path / "run", callbacks=[])
    assert json.dumps(sorted(tmp_path.iterdir())) == "[]"
