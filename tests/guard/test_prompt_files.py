import json

import pytest

from featherweight.errors import ConfigError
from featherweight.guard.prompt_files import read_prompt_rows, read_prompts, refuse_shared


def written(folder, name, text):
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.jsonl", '{"prompt": "One"}\n\n{"prompt": "Two"}\n'),
        ("a.json", '["One", {"goal": "Two", "target": "x"}]'),
        ("a.csv", "id,prompt,type,label\n1,One,a,safe\n2,Two,b,safe\n"),
        ("a.csv", "Behavior,SemanticCategory,BehaviorID\nOne,a,1\nTwo,b,2\n"),
        ("a.tsv", "text\tcategory\nOne\ta\nTwo\tb\n"),
        ("a.txt", "One\nTwo\n"),
        ("a.jsonl", "\ufeff" + '{"messages": [{"role": "user", "content": "One"}]}\n"Two"\n'),
    ],
)
def test_prompts_are_read_under_the_names_that_data_sets_use(tmp_path, name, text):
    found = read_prompts(written(tmp_path, name, text), "benign")
    assert [one.text for one in found.prompts] == ["One", "Two"]


def test_instruction_and_input_are_one_prompt_and_a_context_stands_in_front_of_its_behaviour():
    rows = [{"instruction": "Sum up", "input": "Text"}, {"Behavior": "Explain", "ContextString": "Given"}]
    assert [one.text for one in read_prompts(rows, "x").prompts] == ["Sum up\n\nText", "Given\n\nExplain"]


def test_the_same_request_counts_once_whatever_its_case_and_marks():
    found = read_prompts(["What is it?", "what is  it", "WHAT IS IT!", "另一个", "?", "!"], "benign")
    assert [one.text for one in found.prompts] == ["What is it?", "另一个", "?", "!"]
    assert found.dropped == 2


def test_a_prompt_in_two_classes_is_refused_without_its_words():
    sets = [read_prompts(["Hello there", "Bye"], "harmful"), read_prompts(["hello, THERE"], "benign")]
    with pytest.raises(ConfigError, match=r"benign, item 1 \(benign\) asks the same as harmful, item 1") as caught:
        refuse_shared(sets)
    assert "there" not in str(caught.value).lower()


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.jsonl", '{"prompts": "One"}\n', "columns=prompts are unknown"),
        ("a.jsonl", '{"prompt": "One", "secret": 1}\n', "columns=secret are unknown"),
        ("a.jsonl", '{"prompt": 3}\n', "prompt=3 is no prompt"),
        ("a.jsonl", '{"prompt": "  "}\n', "the prompt is empty"),
        ("a.jsonl", '{"prompt": \n', "cannot be read"),
        ("a.jsonl", "3\n", "the row is a int"),
        ("a.json", '{"prompt": "One"}', "holds a JSON dict"),
        ("a.json", '[[{"content": "One"}]]', "the turns have no role"),
        ("a.txt", "\n", "holds no prompt"),
        ("a.xlsx", "", "is of no kind that is read"),
    ],
)
def test_what_is_no_prompt_is_refused(tmp_path, name, text, message):
    with pytest.raises(ConfigError, match=message):
        read_prompts(written(tmp_path, name, text), "benign")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_prompts(tmp_path / "gone.txt", "benign")


def test_rows_to_be_scored_keep_their_names_and_repetitions(tmp_path):
    lines = ["One", json.dumps({"id": "b", "prompt": "Two"}), "One"]
    found = read_prompt_rows(lines)
    assert [name for name, _ in found] == ["1", "b", "3"]
    assert found[1][1] == [{"role": "user", "content": "Two"}]
    with pytest.raises(ConfigError, match="line 1 is no JSON"):
        read_prompt_rows(["{broken"])
