"""lm-evaluation-harness on local data; left out where it is not installed."""

import json
import os
from pathlib import Path

import pytest

from featherweight.errors import ConfigError
from featherweight.models import load_model, load_tokenizer
from featherweight.text.evaluation import evaluate_questions
from featherweight.text.questions import read_questions

pytest.importorskip("lm_eval")
ARC = os.environ.get("FEATHERWEIGHT_ARC_EASY", "")
"""A file of ARC-Easy questions as the LLM-Adapters data sets have them; no test needs it that runs by default."""

TASK = """
task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
output_type: multiple_choice
test_split: test
doc_to_text: "Question: {{{{question}}}}\\nAnswer:"
doc_to_choice: choices
doc_to_target: answer
metric_list:
  - metric: acc
  - metric: acc_norm
"""


def write_task(folder, rows):
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "mine.yaml").write_text(TASK.format(name="mine", file=folder / "rows.jsonl"))
    return str(folder / "rows.jsonl")


@pytest.mark.slow  # importing the harness alone takes some ten seconds
def test_the_built_in_measure_is_that_of_the_harness_on_the_same_questions(tmp_path, monkeypatch):
    from featherweight.text.harness import evaluate_tasks, task_names

    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    rows = [
        {"question": f"What follows {n}?", "choices": [str(n + 1), f"{n} times ten", "z"], "answer": n % 3}
        for n in range(12)
    ]
    model, tokenizer = load_model("tiny").eval(), load_tokenizer("tiny")
    path = write_task(tmp_path, rows)
    found = evaluate_tasks(model, tokenizer, ["mine"], include=tmp_path)["mine"]
    ours = evaluate_questions(model, tokenizer, path)
    assert (found["acc"], found["acc_norm"]) == pytest.approx((ours.accuracy, ours.accuracy_norm))
    assert "mine" in task_names(tmp_path) and "arc_easy" in task_names()
    with pytest.raises(ConfigError, match="task=arc_eazy is unknown; expected one of .*or mine of .*'arc_easy'"):
        evaluate_tasks(model, tokenizer, ["arc_eazy"], include=tmp_path)
    with pytest.raises(ConfigError, match="tasks=arc_easy cannot be run .*Without a network"):
        evaluate_tasks(model, tokenizer, ["arc_easy"])


@pytest.mark.slow
@pytest.mark.skipif(not Path(ARC).is_file(), reason="FEATHERWEIGHT_ARC_EASY names no file of questions")
def test_on_real_questions_a_pretrained_model_is_better_than_chance_and_both_measures_agree(tmp_path, monkeypatch):
    from featherweight.text.harness import evaluate_tasks

    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    rows = [
        {"question": one.stem, "choices": list(one.choices), "answer": one.answer}
        for one in read_questions(ARC, limit=60)
    ]
    model, tokenizer = load_model("smollm2").eval(), load_tokenizer("smollm2")
    path = write_task(tmp_path, rows)
    ours = evaluate_questions(model, tokenizer, path)
    found = evaluate_tasks(model, tokenizer, ["mine"], include=tmp_path)["mine"]
    assert ours.accuracy > ours.chance + 2 * ours.stderr
    # A near tie may fall the other way, because the harness pads its batches otherwise.
    assert abs(found["acc"] - ours.accuracy) <= 1 / 60 + 1e-9
    assert abs(found["acc_norm"] - ours.accuracy_norm) <= 1 / 60 + 1e-9
