import json

import pytest

from featherweight.errors import ConfigError
from featherweight.text.questions import Question, read_questions


def write(folder, rows):
    path = folder / "questions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


WANTED = Question("Which is red?", ("sky", "blood"), 1)


@pytest.mark.parametrize(
    "row",
    [
        {"question": "Which is red?", "choices": ["sky", "blood"], "answer": 1},
        {"question": "Which is red?", "choices": ["sky", "blood"], "answer": "blood"},
        {"question": "Which is red?", "options": ["sky", "blood"], "answer": "B"},
        {"question": "Which is red?", "options": {"A": "sky", "B": "blood"}, "answer": "B"},
        {"question": "Which is red?", "choices": {"text": ["sky", "blood"], "label": ["1", "2"]}, "answerKey": "2"},
        {"question": "Which is red?", "A": "sky", "B": "blood", "answer": "B"},
        {"goal": "Which is red?", "sol1": "sky", "sol2": "blood", "label": 1},
        {"ctx": "Which is red?", "endings": ["sky", "blood"], "label": "1"},
        {"sentence": "Which is red?", "option1": "sky", "option2": "blood", "answer": "2"},
        {
            "instruction": "Choose: Which is red?\n\nAnswer1: sky Answer2: blood\n\nAnswer format: answer1/answer2",
            "output": "the correct answer is answer2",
            "answer": "answer2",
        },
    ],
)
def test_published_forms_are_read(row, tmp_path):
    assert read_questions(write(tmp_path, [row])) == [WANTED]


def test_numbers_count_from_1_if_one_is_the_number_of_choices_and_none_is_0(tmp_path):
    rows = [{"question": "q", "choices": ["a", "b", "c"], "answer": number} for number in (1, 3, 2)]
    assert [one.answer for one in read_questions(write(tmp_path, rows))] == [0, 2, 1]
    assert len(read_questions(write(tmp_path, rows), limit=2)) == 2
    with pytest.raises(ConfigError, match="line 4 has answer='3', which names none of its 3 choices"):
        read_questions(write(tmp_path, [{**rows[0], "answer": 0}, rows[0], rows[2], rows[1]]))


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ({"question": "q", "answer": 0}, "line 1 has the keys .* and no choices"),
        ({"question": "q", "choices": ["a"], "answer": 0}, "no two choices"),
        ({"choices": ["a", "b"], "answer": 0}, "no question .one of question, query"),
        ({"question": "q", "choices": ["a", "b"]}, "no answer .one of answer"),
        ({"question": "q", "choices": ["a", "b"], "answer": "maybe"}, "answer='maybe', which names none"),
    ],
)
def test_a_row_that_is_no_question_is_named_with_its_place(row, sentence, tmp_path):
    with pytest.raises(ConfigError, match=sentence):
        read_questions(write(tmp_path, [row]))
