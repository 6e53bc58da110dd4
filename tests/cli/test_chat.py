"""`fw chat` and `fw generate` in a pipe and, by a pseudo terminal, for a person."""

import io
import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from featherweight.cli import run
from featherweight.cli.chat import Session
from featherweight.models.chat import AnswerOptions, Chat
from featherweight.models.load import load_model, load_tokenizer
from featherweight.models.tokenizer import byte_tokenizer

MODELS = runpy.run_path(str(Path(__file__).parents[1] / "reference" / "causal_models.py"))


def say(monkeypatch, text):
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))


def expected(folder, questions, count=10):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    messages, lines = [], ""
    for question in questions:
        messages.append({"role": "user", "content": question})
        inputs = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        ids = model.generate(**inputs, do_sample=False, max_new_tokens=count, pad_token_id=256)
        answer = tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        messages.append({"role": "assistant", "content": answer})
        lines += answer if answer.endswith("\n") else answer + "\n"
    return lines


def test_a_pipe_gets_the_greedy_answers_of_transformers_and_nothing_else(talking_model, monkeypatch, capsys):
    say(monkeypatch, "What is red?\n\nAnd green?\n")
    assert run(["chat", str(talking_model), "--max-new-tokens", "10"]) == 0
    assert capsys.readouterr().out == expected(talking_model, ["What is red?", "And green?"])


def test_commands_work_in_a_pipe_too(talking_model, monkeypatch, capsys, tmp_path):
    file = tmp_path / "talk.jsonl"
    say(monkeypatch, f"One\n/reset\nTwo\n/save {file}\n/exit\nnever asked\n")
    assert run(["chat", str(talking_model), "--max-new-tokens", "10"]) == 0
    assert capsys.readouterr().out == expected(talking_model, ["One"]) + expected(talking_model, ["Two"])
    turns = json.loads(file.read_text())["messages"]
    assert [turn["role"] for turn in turns] == ["user", "assistant"] and turns[0]["content"] == "Two"
    say(monkeypatch, f"/save {file}\n")
    assert run(["chat", str(talking_model)]) == 2
    assert "is there already" in capsys.readouterr().err


def test_a_terminal_gets_facts_help_and_sentences_and_an_interrupt_ends_only_the_answer(
    talking_model, monkeypatch, capsys
):
    chat = Chat(
        load_model(str(talking_model)), load_tokenizer(str(talking_model)), options=AnswerOptions(max_new_tokens=20)
    )
    session = Session(chat, is_terminal=True)
    lines = iter(["/help", "/nothing", "Hi", "Stop me", "/save"])

    def typed(*_, **__):
        try:
            return next(lines)
        except StopIteration:
            raise KeyboardInterrupt from None  # the second one, at the prompt

    monkeypatch.setattr(session._console, "input", typed)
    original = chat.ask

    def ask(question):
        for count, piece in enumerate(original(question)):
            if question == "Stop me" and count == 1:
                raise KeyboardInterrupt
            yield piece

    monkeypatch.setattr(chat, "ask", ask)
    session.run("model")
    captured = capsys.readouterr()
    assert "tokens/s, cut short" in captured.out and "/reset" in captured.out
    assert "command=/nothing is unknown" in captured.err and "/save names no file" in captured.err
    assert [turn["role"] for turn in chat.messages] == ["user", "assistant"] * 2


def test_a_pipe_that_closes_ends_the_command_quietly(talking_model):
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    code = "import sys; from featherweight.cli import run; code = run(sys.argv[1:]); sys.exit(code)"
    command = [sys.executable, "-c", code, "generate", str(talking_model), "--prompt", "a", "--max-new-tokens", "900"]
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=300, env=environment)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["chat", "./nowhere"], "source=./nowhere does not exist"),
        (["generate", "./nowhere", "--prompt", "a"], "source=./nowhere does not exist"),
        (["chat", "base"], "model=base has no chat template (a base model)"),
        (["chat", "base", "--template", "chatml", "--top-p", "0.9"], "has no effect at temperature=0"),
        (["generate", "base", "--prompt", "a", "--dtype", "int8"], "dtype='int8' is unknown"),
    ],
)
def test_bad_input_is_one_sentence_before_torch_is_imported(arguments, sentence, tmp_path):
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text("{}")
    (tmp_path / "base" / "tokenizer_config.json").write_text("{}")
    code = (
        "import sys; from featherweight.cli import run; code = run(sys.argv[1:]); print(code, 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=tmp_path, timeout=60
    )
    assert done.stdout.split() == ["2", "False"] and done.stderr.count("\n") == 1
    assert sentence in done.stderr


@pytest.mark.parametrize("command", [["chat"], ["generate", "--max-new-tokens", "2"]], ids=["chat", "generate"])
def test_bytes_that_are_no_text_are_a_sentence(talking_model, monkeypatch, capsys, command):
    for errors in ("strict", "surrogateescape"):  # as in a locale of UTF-8, and in that of C
        raw = io.BytesIO("Grün?\n".encode("latin1"))
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(raw, encoding="utf-8", errors=errors))
        assert run([command[0], str(talking_model), *command[1:]]) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.count("\n") == 1
        assert f"fw {command[0]}: standard input holds bytes that are no UTF-8" in err and "iconv" in err


def test_a_line_that_fills_the_context_is_a_sentence_and_empty_lines_are_nothing(talking_model, monkeypatch, capsys):
    say(monkeypatch, "\n   \n\t\n")
    assert run(["chat", str(talking_model)]) == 0
    assert capsys.readouterr() == ("", "")
    say(monkeypatch, "long " * 2000 + "\n")
    assert run(["chat", str(talking_model)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and "fill the model's context of 1024 tokens" in err


@pytest.mark.parametrize("command", [["chat"], ["evaluate"], ["export", "--to", "hf:bf16", "--out", "x"]])
def test_the_model_of_a_run_that_goes_on_is_a_sentence(tmp_path, monkeypatch, capsys, command):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.yaml").write_text("steps: 3\n")
    for source, sentence in (
        ("run/model", "the run in run has not ended; expected a finished run .* fw train run/recipe.yaml --out run"),
        ("run", "source=run is the folder of a run; expected that of a model. Write run/model."),
    ):
        assert run([command[0], source, *command[1:]]) == 2
        assert re.search(sentence, capsys.readouterr().err)
    (tmp_path / "run" / "summary.json").write_text("{}")
    assert run([command[0], "run/model", *command[1:]]) == 2
    assert "wrote none; expected a finished run with its model. Train with save_model=true" in capsys.readouterr().err


def in_terminal(arguments, typed, **environment):
    """Run a command in a pseudo terminal, type each text once the one before it has been answered, return all shown.

    Args:
        arguments: of the command line.
        typed: pairs of what to wait for and what to type then.
        environment: further variables.
    """
    import pty
    import select
    import time

    child, terminal = pty.fork()
    if child == 0:
        os.environ.update({"HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(sys.path), **environment})
        os.execv(sys.executable, [sys.executable, "-m", "featherweight", *arguments])
    shown, end = b"", time.monotonic() + 300
    waiting = list(typed)
    while time.monotonic() < end:
        if waiting and waiting[0][0].encode() in shown.rpartition(b"\x00")[2]:
            os.write(terminal, waiting.pop(0)[1].encode())
            shown += b"\x00"  # what comes from here on answers it
        if select.select([terminal], [], [], 0.1)[0]:
            try:
                more = os.read(terminal, 65536)
            except OSError:  # the other side is gone
                break
            if not more:
                break
            shown += more
    _, status = os.waitpid(child, 0)
    return shown.replace(b"\x00", b"").decode(errors="replace"), os.waitstatus_to_exitcode(status)


@pytest.mark.slow  # processes that load a model
@pytest.mark.skipif(sys.platform == "win32", reason="needs pseudo terminals")
def test_a_person_types_odd_things_interrupts_an_answer_and_leaves_by_ctrl_d(talking_model):
    typed = [("> ", "\n"), ("> ", "/nothing\n"), ("> ", "Hi\n"), ("tokens/s", "Go on\n"), ("", "\x03"), ("> ", "\x04")]
    shown, code = in_terminal(["chat", str(talking_model), "--max-new-tokens", "400"], typed, TERM="xterm")
    assert code == 0 and "Traceback" not in shown
    assert "command=/nothing is unknown" in shown and "tokens/s" in shown
    lost, code = in_terminal(["chat", str(talking_model)], [("> ", "\x03")], TERM="xterm")
    assert code == 0 and "Traceback" not in lost


@pytest.mark.slow  # as above
@pytest.mark.skipif(sys.platform == "win32", reason="needs pseudo terminals")
def test_a_terminal_without_colours_gets_none(talking_model):
    chat = ["chat", str(talking_model), "--max-new-tokens", "4"]
    for arguments, typed in ((["train", "--help"], []), (chat, [("> ", "Hi\n"), ("tokens/s", "\x04")])):
        shown, code = in_terminal(arguments, typed, TERM="dumb")
        assert code == 0 and "\x1b" not in shown, shown
        shown, code = in_terminal(arguments, typed, TERM="xterm-256color", NO_COLOR="1")
        assert code == 0 and not re.search(r"\x1b\[[0-9;]*3[0-9]", shown), shown
    coloured, _ = in_terminal(["train", "--help"], [], TERM="xterm-256color", NO_COLOR="")
    assert re.search(r"\x1b\[[0-9;]*3[0-9]", coloured)  # mutation: without it, nothing was looked at


def test_a_base_model_talks_with_a_template_that_is_named(tmp_path, monkeypatch, capsys):
    MODELS["causal_model"]("llama", vocab_size=257, eos_token_id=256, max_position_embeddings=512).save_pretrained(
        tmp_path
    )
    byte_tokenizer().save_pretrained(tmp_path)
    say(monkeypatch, "Hi\n")
    assert run(["chat", str(tmp_path), "--template", "alpaca", "--max-new-tokens", "3"]) == 0
    assert capsys.readouterr().out.endswith("\n")
