import pytest
import yaml

from featherweight.cli import run
from featherweight.cli.recipe_check import check_recipe
from featherweight.errors import ConfigError


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "chats.jsonl").write_text('{"messages": []}\n' * 3)
    (tmp_path / "notes.txt").write_text("a note\n\nanother\n")
    for name, task in (
        ("chat", {"name": "chat", "model": "smollm2", "data": "chats.jsonl"}),
        ("text", {"name": "text", "model": "tiny", "corpus": "notes.txt", "seq_len": 16}),
    ):
        content = {"task": task, "steps": 2, "micro_batch_size": 1}
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(content))
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["chat.yaml", "micro_batch_size=4"], "micro_batch_size=4 is more than the data can fill .chats.jsonl holds 3"),
        (["text.yaml", "micro_batch_size=4"], "micro_batch_size=4 is more than the data can fill .notes.txt has 16 b"),
        (["chat.yaml", "task.data=chat.jsonl"], "data=chat.jsonl does not exist; .* Did you mean .chats.jsonl"),
        (["text.yaml", "task.corpus=note.txt"], "corpus=note.txt does not exist; .* Did you mean .notes.txt"),
        (["text.yaml", "task.held_out=other.txt"], "other.txt does not exist"),
        (["text.yaml", "task.model=./absent"], "source=./absent does not exist"),
        (["text.yaml", "stpes=3"], "stpes=3 is unknown; .* Did you mean .steps"),
    ],
)
def test_a_recipe_is_refused_before_anything_is_loaded(folder, arguments, sentence):
    path, *changes = arguments
    with pytest.raises(ConfigError, match=sentence):
        check_recipe(folder / path, changes)


def test_what_the_data_can_fill_passes(folder):
    check_recipe(folder / "chat.yaml", ["micro_batch_size=3"])
    check_recipe(folder / "text.yaml", ["micro_batch_size=2"])
    check_recipe(folder / "text.yaml", ["task.corpus=english", "micro_batch_size=500"])


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["train", "chat.yaml", "micro_batch_size=4"], "more than the data can fill"),
        (["compare", "text.yaml", "task.corpus=note.txt"], "does not exist"),
        (["measure", "absent.yaml"], "does not exist"),
        (["train", "text.yaml", "--plan", "16"], "budget='16' has no unit"),
        (["plan", "--model", "llama-7b", "--budget", "12"], "budget='12' has no unit"),
        (["plan", "--model", "llama-7b", "--budget", "12GB", "--seq-len", "1"], "--seq-len=1 is out of range"),
        (["plan", "--model", "llama-7b", "--budget", "12GB", "--seq-len", "9999"], "--seq-len=9999 is longer than"),
        (["plan", "--model", "./absent", "--budget", "12GB"], "does not exist"),
        (["plan", "--model", "llama-7b", "--device", "rtx4091"], "Did you mean 'RTX 4090'"),
    ],
)
def test_every_command_refuses_it_in_one_sentence(folder, capsys, arguments, sentence):
    assert run(arguments) == 2
    out, err = capsys.readouterr()
    assert sentence in err and err.count("\n") == 1 and not out
