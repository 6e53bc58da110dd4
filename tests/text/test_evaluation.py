import json
import math

import pytest
import torch
from torch.nn import functional as F

from featherweight.errors import ConfigError
from featherweight.models import load_model, load_tokenizer
from featherweight.text.evaluation import evaluate_questions, evaluate_text, evaluation_report


@pytest.fixture(scope="module")
def tiny():
    return load_model("tiny").eval(), load_tokenizer("tiny")


@pytest.fixture
def questions(tmp_path):
    rows = [
        {"question": f"What follows {n}?", "choices": [str(n + 1), f"{n} times ten", "z"], "answer": n % 3}
        for n in range(12)
    ]
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path, rows


def test_an_answer_is_the_choice_of_the_largest_probability_by_sum_and_by_byte(tiny, questions):
    model, tokenizer = tiny
    path, rows = questions
    right, by_byte = 0, 0
    for row in rows:
        prompt = tokenizer(f"Question: {row['question']}\nAnswer:")["input_ids"]
        scores = []
        for choice in row["choices"]:
            ids = tokenizer(f" {choice}", add_special_tokens=False)["input_ids"]
            with torch.no_grad():
                logits = model(torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1].double()
            scores.append(-F.cross_entropy(logits, torch.tensor(ids), reduction="sum").item())
        right += max(range(3), key=scores.__getitem__) == row["answer"]
        by_byte += max(range(3), key=lambda i: scores[i] / len(row["choices"][i])) == row["answer"]  # noqa: B023
    found = evaluate_questions(model, tokenizer, str(path))
    assert (found.accuracy, found.accuracy_norm) == (right / 12, by_byte / 12)
    assert found.chance == pytest.approx(1 / 3) and found.questions == 12
    assert found.stderr == pytest.approx(math.sqrt(found.accuracy * (1 - found.accuracy) / 11))
    with pytest.raises(ConfigError, match="has no place for the question"):
        evaluate_questions(model, tokenizer, str(path), prompt="Q:")


def test_bits_per_byte_are_the_loss_of_a_byte_tokenizer(tiny):
    found = evaluate_text(*tiny, "english", tokens=512)
    assert found.perplexity == pytest.approx(math.exp(found.loss))
    assert found.bits_per_byte == pytest.approx(found.loss / math.log(2), rel=0.02)  # a few bytes are no text
    assert "512 tokens" in found.protocol


def test_the_report_and_the_plain_values_have_the_same_numbers(tiny, questions):
    report, results = evaluation_report(*tiny, "tiny", texts=["english"], questions=[str(questions[0])], tokens=256)
    (row,) = report.section("Multiple choice").rows
    assert row[1] == results["questions"][str(questions[0])]["accuracy"]
    assert report.section("Perplexity").rows[0][2] == results["text"]["english"]["perplexity"]
