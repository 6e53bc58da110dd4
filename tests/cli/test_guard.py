import json

import pytest
from guard_stand_in import BORDERLINE, FIXTURE, FORBIDDEN, generated_world, marked

from featherweight.cli import run

WORLD = generated_world()
GUARD = FIXTURE.with_name("stand_in_guard")


@pytest.fixture
def files(tmp_path):
    groups = {
        "bad.jsonl": WORLD.prompts("val", FORBIDDEN),
        "good.jsonl": WORLD.prompts("val", "ordinary", 150),
        "close.jsonl": WORLD.prompts("val", BORDERLINE, 30),
    }
    for name, prompts in groups.items():
        (tmp_path / name).write_text("".join(json.dumps({"prompt": text}) + "\n" for text in prompts))
    return tmp_path


@pytest.mark.slow
def test_a_guard_is_calibrated_and_its_report_lies_beside_it(files, capsys):
    words = ["guard", "calibrate", "--model", str(FIXTURE), "--out", str(files / "guard"), "--target-fpr", "0.05"]
    for option, name in (("--harmful", "bad"), ("--benign", "good"), ("--borderline", "close")):
        words += [option, str(files / f"{name}.jsonl")]
    words += ["--borderline-fpr", "0.2"]
    assert run([*words, "--prefix", "I'm sorry, but I cannot", "--tier", "prefix_hidden"]) == 0
    shown = capsys.readouterr()
    assert "harmful (should be flagged)" in shown.out and "borderline" in shown.out
    assert "make a rough threshold" in shown.err
    assert sorted(path.name for path in (files / "guard").iterdir()) == [
        "classifier.safetensors",
        "guard_config.json",
        "report.html",
        "report.json",
        "report.md",
    ]


def test_prompts_of_a_pipe_get_one_line_each_and_the_exit_code_says_whether_one_is_flagged(monkeypatch, capsys):
    import io

    good, bad = WORLD.prompts("test", "ordinary", 2), marked(WORLD.prompts("test", FORBIDDEN, 1)[0])
    for prompts, code in (([*good, bad], 1), (good[:1], 0)):
        monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(prompts) + "\n"))
        assert run(["guard", "score", "--model", str(FIXTURE), "--guard", str(GUARD)]) == code
        rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert [row["id"] for row in rows] == [str(index + 1) for index in range(len(prompts))]
        assert rows[-1]["flagged"] is bool(code)
        assert not any(text in json.dumps(rows) for text in prompts)


def test_a_guard_is_measured_on_new_prompts(files, capsys):
    words = ["guard", "eval", "--model", str(FIXTURE), "--guard", str(GUARD), "--json"]
    words += ["--harmful", str(files / "bad.jsonl"), "--benign", str(files / "good.jsonl")]
    assert run(words) == 0
    assert json.loads(capsys.readouterr().out)["title"] == "Guard on new prompts"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--harmful", "gone.txt", "--benign", "gone.txt"], "file=gone.txt is no file"),
        (["--harmful", "{}/bad.jsonl", "--benign", "{}/bad.jsonl"], "is the file of --harmful"),
        (
            ["--harmful", "{}/bad.jsonl", "--benign", "{}/good.jsonl", "--category-fpr", "travel"],
            "category_fpr='travel' is no pair",
        ),
    ],
)
def test_slips_are_told_before_a_model_is_loaded(files, words, message, capsys):
    words = [word.format(files) for word in words]
    assert run(["guard", "calibrate", "--model", str(FIXTURE), "--out", str(files / "guard"), *words]) == 2
    assert message in capsys.readouterr().err


def test_chat_and_generate_take_a_guard(monkeypatch, capsys):
    import io

    bad = marked(WORLD.prompts("test", FORBIDDEN, 1)[0])
    monkeypatch.setattr("sys.stdin", io.StringIO(bad + "\n"))
    assert run(["chat", str(FIXTURE), "--guard", str(GUARD), "--max-new-tokens", "4"]) == 0
    assert capsys.readouterr().out == "I'm sorry, but I cannot help with that.\n"
    assert run(["generate", str(FIXTURE), "--guard", str(GUARD), "--prompt", bad]) == 0
    assert capsys.readouterr().out == "I'm sorry, but I cannot help with that.\n"
