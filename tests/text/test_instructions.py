import json

import pytest
import torch

from featherweight.errors import ConfigError
from featherweight.models.tokenizer import byte_tokenizer
from featherweight.text.instructions import (
    Instruction,
    as_cloze,
    encode_instruction,
    extract_letter,
    extract_number,
    extract_option,
    is_correct,
    load_instructions,
    pad_batch,
    prompt_of,
)

ARC = (
    "Please choose the correct answer to the question: What is red?\n\nAnswer1: a cloud Answer2: blood Answer3: "
    "the sea\n\n"
    "Answer format: answer1/answer2/answer3"
)


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        (
            {"instruction": ARC, "input": "", "output": "the correct answer is answer2", "answer": "answer2"},
            (ARC, "the correct answer is answer2", "answer2"),
        ),
        ({"question": "2+3?", "answer": "It is 5.\n#### 5"}, ("2+3?", "It is 5.", "5")),
        (
            {"prompt": "Say hi", "answer": "    hi\n\n#### Step 1\n"},
            ("Say hi", "    hi\n\n#### Step 1\n", "hi\n\n#### Step 1"),
        ),
        ({"instruction": "Translate.", "input": "Hund", "output": "dog"}, ("Translate.\n\nHund", "dog", "dog")),
        ({"original_text": "4 + 4 ?", "ans": "8.0"}, ("4 + 4 ?", "8.0", "8.0")),
    ],
)
@pytest.mark.parametrize("lines", [False, True])
def test_files_of_every_known_form_are_read(entry, expected, lines, tmp_path):
    path = tmp_path / "data.json"
    path.write_text("\n".join([json.dumps(entry)] * 2) if lines else json.dumps([entry, entry]))

    found = load_instructions(path)

    assert [(one.instruction, one.output, one.answer) for one in found] == [expected] * 2


@pytest.mark.parametrize("text", ["[{]", '[{"instruction": "x"}]', '[{"output": "x"}]'])
def test_a_wrong_file_is_one_sentence(text, tmp_path):
    (tmp_path / "data.json").write_text(text)
    with pytest.raises(ConfigError, match="load_instructions: .*expected"):
        load_instructions(tmp_path / "data.json")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"instruction": "q", "output": "a", "system": "pirate"}, "column 'system'.*Use the task chat"),
        ({"instruction": "q", "output": "a", "history": [["b", "c"]]}, "column 'history'"),
        ({"prompt": "q", "chosen": "a", "rejected": "b"}, "column 'chosen'.*Use the task preference"),
        ({"instruction": "q", "output": ["a", "b"]}, "holds a list under 'output'"),
    ],
    ids=["system", "history", "preference", "list"],
)
def test_what_this_task_would_drop_or_stringify_is_refused(row, message, tmp_path):
    (tmp_path / "data.json").write_text(json.dumps([row]))
    with pytest.raises(ConfigError, match=f"row=1 of .*{message}"):
        load_instructions(tmp_path / "data.json")


def test_prompts_of_training_and_evaluation_differ_in_the_official_template_alone():
    assert prompt_of("Q") == prompt_of("Q", for_training=False)
    training, evaluation = (prompt_of("Q", "official", for_training=one) for one in (True, False))
    assert training == (
        "<s> Below is an instruction that describes a task. Write a response that appropriately completes the "
        "request.  "
        "\n\n### Instruction:\nQ\n                \n### Response:\n"
    )
    assert evaluation.splitlines()[3:] == ["Q", "", "### Response:"] and evaluation.splitlines()[0].endswith(
        "request. "
    )


@pytest.mark.parametrize("template", ["alpaca", "official"])
def test_only_the_response_and_the_end_of_text_count(template):
    tokenizer = byte_tokenizer()
    encoded = encode_instruction(Instruction("Q", "yes", "yes"), tokenizer, template=template)

    counted = [token for token, label in zip(encoded["input_ids"], encoded["labels"], strict=True) if label != -100]
    assert counted[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(counted[:-1]) == ("yes " if template == "official" else "yes")
    assert tokenizer.decode(encoded["input_ids"][: -len(counted)]).endswith("### Response:\n")
    short = encode_instruction(Instruction("Q", "yes", "yes"), tokenizer, template=template, max_tokens=10)
    assert len(short["input_ids"]) == len(short["labels"]) == 10 and set(short["labels"]) == {-100}


def test_batches_are_padded_behind_their_end():
    batch = pad_batch([{"input_ids": [1, 2, 3], "labels": [-100, 2, 3]}, {"input_ids": [4], "labels": [4]}], pad=9)
    assert batch["input_ids"].tolist() == [[1, 2, 3], [4, 9, 9]]
    assert batch["labels"].tolist() == [[-100, 2, 3], [4, -100, -100]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]] and batch["input_ids"].dtype == torch.int64


def test_a_cloze_has_the_texts_of_the_options():
    found = as_cloze(Instruction(ARC, "the correct answer is answer2", "answer2"))
    assert found == Instruction("What is red?", "blood", "answer2", ("a cloud", "blood", "the sea"))
    assert as_cloze(Instruction("2+3?", "5", "5")) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("the correct answer is answer2", "answer2"),
        ("Answer3!", "answer3"),
        ("answer1 or answer2", "answer1"),
        ("answer4", None),
        ("no idea", None),
    ],
)
def test_first_option_named_wins(text, expected):
    example = Instruction(ARC, "", "answer2")
    assert extract_option(text, example.options) == expected
    assert is_correct(example, text) == (expected == "answer2")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("it costs $1,200.50 in 3 years: 1,200.50", 1200.5),
        ("-4", -4.0),
        ("7.", 7.0),
        ("none", None),
        ("5 minus 3 is 2", 2.0),
    ],
)
def test_last_number_counts(text, expected):
    assert extract_number(text) == expected
    example = Instruction("How much?", "", "1200.5")
    assert is_correct(example, text) == (expected == 1200.5)


@pytest.mark.parametrize(
    ("text", "ours", "official"),
    [
        ("A man walks. The answer is C.", "C", "A"),
        ("The correct option: (d)", "D", None),
        ("(B) 23", "B", "B"),
        ("Because 3 > 2, E) holds", "E", "B"),
        ("nothing", None, None),
    ],
)
def test_letters_are_not_articles(text, ours, official):
    assert extract_letter(text) == ours
    assert extract_letter(text, official=True) == official
