import importlib.util
import json

from featherweight.cli import run


def test_a_model_is_measured_on_local_text_and_questions_and_the_folder_has_the_tables(tmp_path, capsys):
    rows = [{"question": f"{n}?", "choices": ["a", "bb"], "answer": n % 2} for n in range(4)]
    (tmp_path / "q.json").write_text(json.dumps(rows))
    (tmp_path / "t.txt").write_text("Some text of words, again and again. " * 30)
    command = ["evaluate", "tiny", "--questions", str(tmp_path / "q.json"), "--text", str(tmp_path / "t.txt")]
    assert run([*command, "--out", str(tmp_path / "report"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["questions"][str(tmp_path / "q.json")]["chance"] == 0.5
    assert found["text"][str(tmp_path / "t.txt")]["perplexity"] > 1
    assert {path.name for path in (tmp_path / "report").iterdir()} == {"report.html", "report.json", "report.csv"}
    assert run([*command, "--out", str(tmp_path / "report")]) == 2
    assert "is there already" in capsys.readouterr().err


def test_bad_words_are_answered_before_a_model_is_loaded(tmp_path, capsys, monkeypatch):
    assert run(["evaluate"]) == 2 and "model=None" in capsys.readouterr().err
    assert run(["evaluate", "tiny", "--questions", str(tmp_path / "no.jsonl")]) == 2
    assert "no.jsonl does not exist" in capsys.readouterr().err
    assert run(["evaluate", "no/model/at/all", "--text", str(tmp_path / "no.txt")]) == 2
    assert "no.txt does not exist" in capsys.readouterr().err  # before anybody looks for the model
    assert run(["evaluate", "tiny", "--tasks", "a", "--include", str(tmp_path / "no")]) == 2
    capsys.readouterr()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None)
    assert run(["evaluate", "tiny", "--tasks", "arc_easy"]) == 2
    error = capsys.readouterr().err
    assert "pip install 'featherweight[evaluate]'" in error and "--questions FILE" in error
