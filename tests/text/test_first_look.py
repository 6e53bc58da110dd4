"""A recipe whose rows cannot be trained on is refused before torch is imported, within a second."""

import json
import resource
import subprocess
import sys

import pytest

from featherweight.errors import ConfigError
from featherweight.text.first_look import look_first

GOOD = [{"prompt": f"q{n}", "completion": f"a{n}"} for n in range(4)]


def write(folder, rows, name="a.jsonl"):
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder / name)


def recipe(data, name="chat", **more):
    return {"task": {"name": name, "model": "tiny", "data": data, **more}}


def messages(*roles):
    return {"messages": [{"role": role, "content": role} for role in roles]}


REFUSED = {
    "mixed formats": ("chat", [GOOD[0], messages("user", "assistant")], "line 2: columns=messages lack"),
    "roles in a wrong order": (
        "chat",
        [messages("user", "assistant", "assistant")],
        "line 1: turn 3 is of 'assistant'",
    ),
    "equal answers": (
        "preference",
        [{"prompt": "q", "chosen": "a", "rejected": "a"}],
        "line 1: chosen and rejected are",
    ),
    "another kind": ("chat", [{"prompt": "q", "chosen": "a", "rejected": "b"}], "Use the task preference"),
    "lost text": ("chat", [{**GOOD[0], "hint": "read me"}], "line 1: column='hint' carries text"),
    "a class without a name": ("classification", [{"text": "a", "label": ""}], "line 1: label='' is no class"),
}


@pytest.mark.parametrize(("name", "rows", "message"), REFUSED.values(), ids=REFUSED)
def test_rows_are_refused_with_their_line(tmp_path, name, rows, message):
    with pytest.raises(ConfigError, match=message):
        look_first(recipe(write(tmp_path, rows), name))


def test_what_the_task_would_take_is_not_judged(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, GOOD)
    write(tmp_path, [{"Frage": "q", "Antwort": "a", "note": "n"}], "b.jsonl")
    look_first(recipe("a.jsonl"))
    look_first(recipe("b.jsonl", columns={"prompt": "Frage", "response": "Antwort"}, ignore_columns=["note"]))
    look_first(recipe("absent.jsonl"), ["task.data=a.jsonl"])
    look_first(recipe(["a.jsonl", {"path": "a.jsonl", "wait": 1}]))  # the recipe's own check knows the key
    look_first({"task": "text"})
    look_first(recipe("hf:somebody/something"))
    with pytest.raises(ConfigError, match="absent.jsonl does not exist"):
        look_first(recipe("absent.jsonl"))
    with pytest.raises(ConfigError, match="c.jsonl does not exist"):
        look_first(recipe("a.jsonl", held_out="c.jsonl"))


def test_a_refused_start_takes_less_than_a_second_of_processor_time(tmp_path):
    write(tmp_path, [*GOOD, messages("user")])
    (tmp_path / "chat.yaml").write_text(
        "task: {name: chat, model: tiny, data: a.jsonl, template: chatml}\nsteps: 1\nmicro_batch_size: 1\n"
    )
    program = (
        "import sys; from featherweight.cli import run; print(run(['train', 'chat.yaml']), 'torch' in sys.modules)"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=tmp_path)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.stdout.split() == ["2", "False"]
    assert "a.jsonl, line 5: columns=messages lack" in done.stderr
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.5  # 0.7 s, and a busy machine
