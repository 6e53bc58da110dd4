"""What a file of chat data holds and what would be learnt from it."""

import json

import pytest

from featherweight.errors import ConfigError
from featherweight.models import byte_tokenizer
from featherweight.models.templates import choose_template
from featherweight.text.survey import survey, understand_source


@pytest.fixture
def tokenizer():
    found = byte_tokenizer()
    choose_template(found, "chatml")
    return found


def write(folder, rows):
    path = folder / "chats.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def chat(number, *turns):
    return {"messages": [{"role": role, "content": f"{role}{number}"} for role in turns]}


def test_rows_turns_and_lengths_are_counted_and_only_answers_are_learnt(tmp_path, tokenizer):
    rows = [chat(0, "user", "assistant"), chat(1, "system", "user", "assistant", "user", "assistant")]
    found = survey(write(tmp_path, rows), tokenizer, examples=1)
    assert (found.rows, found.kind, found.with_system, found.with_tools) == (2, "conversation", 1, 0)
    assert found.turns == {"user": 3, "assistant": 3, "system": 1}
    answer = len("assistant0<|im_end|>")  # a token of the byte tokenizer is a byte, but for its marks
    assert found.learnt == [answer, 2 * answer] and found.lengths[0] < found.lengths[1]
    (example,) = found.examples
    assert [piece.text for piece in example.pieces if piece.is_learnt] == ["assistant0<|im_end|>"]
    assert sum(piece.tokens for piece in example.pieces) == found.lengths[0]
    assert found.longer_than(found.lengths[0]) == 1 and found.quantile(0.0) == found.lengths[0]


def test_the_last_answer_alone_is_learnt_on_request(tmp_path, tokenizer):
    source = write(tmp_path, [chat(1, "user", "assistant", "user", "assistant")])
    every, last = survey(source, tokenizer), survey(source, tokenizer, train_on="last")
    assert every.lengths == last.lengths and every.learnt[0] == 2 * last.learnt[0]


def test_both_answers_of_a_preference_are_conversations(tmp_path, tokenizer):
    row = {"prompt": "why", "chosen": "because", "rejected": "no"}
    found = survey(write(tmp_path, [row]), tokenizer)
    assert found.kind == "preference" and found.rows == 1 and len(found.lengths) == 2
    assert [example.label for example in found.examples] == ["chosen", "rejected"]


def test_without_a_tokenizer_rows_and_turns_are_counted_alone(tmp_path):
    found = survey(write(tmp_path, [chat(0, "user", "assistant")]))
    assert found.rows == 1 and found.lengths == [] and found.quantile(0.5) == 0


def test_a_row_that_is_no_object_is_named_with_its_place(tmp_path):
    with pytest.raises(ConfigError, match="line 1: the row is a list; expected an object"):
        understand_source(write(tmp_path, [["a", "list"]]))


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ({"text": "hello", "label": 1}, "classification"),
        ({"sentence1": "a b", "sentence2": "c", "label": "no"}, "classification"),
        ({"Utterance": "a", "intent": "x", "id": 3}, "classification"),
        ({"question": "q", "answer": "a", "category": "geography"}, None),
        ({"prompt": "q", "completion": "a", "label": True}, "judgement"),
        ({"text": "t"}, "document"),
    ],
)
def test_labelled_texts_are_told_from_conversations(tmp_path, row, kind):
    if kind is None:  # a question with its answer is no text of a class, and its category would be lost
        with pytest.raises(ConfigError, match="column='category' carries text"):
            survey(write(tmp_path, [row]))
    else:
        assert survey(write(tmp_path, [row])).kind == kind


def test_texts_are_counted_by_class_and_measured_in_tokens(tmp_path, tokenizer):
    rows = [{"text": "ab", "label": "x"}, {"text": "abcd", "label": "y"}, {"text": "a", "label": "y"}]
    found = survey(write(tmp_path, rows), tokenizer, examples=1)
    assert found.classes == {"x": 1, "y": 2} and found.lengths == [2, 4, 1] and found.learnt == []
    (example,) = found.examples
    assert example.label == "x" and example.pieces[0].text == "ab"


def test_turns_of_chosen_roles_are_learnt(tmp_path, tokenizer):
    source = write(tmp_path, [chat(1, "user", "assistant", "tool", "assistant")])
    found = survey(source, tokenizer, train_on=["tool"])
    assert [piece.text for piece in found.examples[0].pieces if piece.is_learnt] == ["tool1<|im_end|>"]
