"""Rows of every format become what they say; what would be lost or guessed is refused with its place."""

import json

import pytest

from featherweight.errors import ConfigError
from featherweight.text.conversation import Conversation, Document, Judgement, Preference, Turn
from featherweight.text.formats import records

U, A, S = (lambda text, role=role: Turn(role, text) for role in ("user", "assistant", "system"))
SAID = "    Three steps:\n\n#### Step 1\nDo this. 🎉\n"
"""Blanks in front, a Markdown heading, a line break at the end: all of it is the answer."""

ROWS = {
    "alpaca": ({"instruction": "q", "input": "", "output": SAID}, [U("q"), A(SAID)]),
    "alpaca with input": ({"instruction": "q", "input": "i", "output": "a"}, [U("q\n\ni"), A("a")]),
    "alpaca with system and history": (
        {"system": "pirate", "instruction": "q2", "output": "a2", "history": [["q1", "a1"]]},
        [S("pirate"), U("q1"), A("a1"), U("q2"), A("a2")],
    ),
    "any case": ({"Instruction": "q", "OUTPUT": "a"}, [U("q"), A("a")]),
    "instruction and response": ({"instruction": "q", "response": "a"}, [U("q"), A("a")]),
    "prompt and completion": ({"prompt": "q", "completion": "a"}, [U("q"), A("a")]),
    "prompt and completion of messages": (
        {"prompt": [{"role": "user", "content": "q"}], "completion": [{"role": "assistant", "content": "a"}]},
        [U("q"), A("a")],
    ),
    "question, context, answer": ({"question": "q", "context": "c", "answer": "a"}, [U("c\n\nq"), A("a")]),
    "messages": (
        {
            "messages": [
                {"role": "system", "content": "s"},
                {"role": "user", "content": "q"},
                {"role": "assistant", "content": SAID},
            ]
        },
        [S("s"), U("q"), A(SAID)],
    ),
    "messages as a text of JSON": (
        {"messages": json.dumps([{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}])},
        [U("q"), A("a")],
    ),
    "parts of text": (
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "q"}]},
                {"role": "assistant", "content": "a"},
            ]
        },
        [U("q"), A("a")],
    ),
    "sharegpt": (
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], "system": "s"},
        [S("s"), U("q"), A("a")],
    ),
    "an identifier": ({"id": "abc-1", "prompt": "q", "completion": "a", "score": 3}, [U("q"), A("a")]),
    "right to left": ({"prompt": "שלום", "completion": "مرحبا"}, [U("שלום"), A("مرحبا")]),
    "100 turns": (
        {"messages": [{"role": ("user", "assistant")[n % 2], "content": f"t{n}"} for n in range(100)]},
        [Turn(("user", "assistant")[n % 2], f"t{n}") for n in range(100)],
    ),
}


def read(*rows, **options):
    return list(records([(f"chats.jsonl, line {number}", row) for number, row in enumerate(rows, 1)], **options))


@pytest.mark.parametrize(("row", "turns"), ROWS.values(), ids=ROWS)
def test_a_row_becomes_its_turns_and_no_word_changes(row, turns):
    assert read(row) == [Conversation(tuple(turns), (), "chats.jsonl, line 1")]


def test_tool_calls_are_kept_with_their_own_arguments():
    calls = [
        {"id": "1", "type": "function", "function": {"name": name, "arguments": arguments}}
        for name, arguments in (("weather", {"city": "Dhaka"}), ("sum", {"numbers": [1, 2]}))
    ]
    tools = [{"type": "function", "function": {"name": "weather"}}]
    messages = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": None, "tool_calls": calls},
        {"role": "tool", "content": "4", "name": "sum", "tool_call_id": "1"},
        {"role": "assistant", "content": "a"},
    ]
    (read_back,) = read({"messages": messages, "tools": json.dumps(tools)})
    assert read_back.messages()[1] == {"role": "assistant", "content": "", "tool_calls": calls}
    assert read_back.messages()[2] == messages[2]
    assert list(read_back.tools) == tools


def test_function_calls_of_sharegpt_are_tool_calls():
    turns = [
        ("human", "q"),
        ("function_call", '{"name": "f", "arguments": {"x": 1}}'),
        ("observation", "2"),
        ("gpt", "a"),
    ]
    (one,) = read({"conversations": [{"from": side, "value": text} for side, text in turns]})
    assert [turn.role for turn in one.turns] == ["user", "assistant", "tool", "assistant"]
    assert one.messages()[1]["tool_calls"][0]["function"] == {"name": "f", "arguments": {"x": 1}}


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "q", "chosen": "a", "rejected": "b"},
        {
            "prompt": [{"role": "user", "content": "q"}],
            "chosen": [{"role": "assistant", "content": "a"}],
            "rejected": [{"role": "assistant", "content": "b"}],
        },
        {
            side: [{"role": "user", "content": "q"}, {"role": "assistant", "content": text}]
            for side, text in (("chosen", "a"), ("rejected", "b"))
        },
        {
            "prompt": "q",
            **{
                side: [{"role": "user", "content": "q"}, {"role": "assistant", "content": text}]
                for side, text in (("chosen", "a"), ("rejected", "b"))
            },
        },
    ],
    ids=["texts", "messages", "shared beginning", "prompt repeated in the answers"],
)
def test_a_preference_has_its_prompt_once(row):
    (one,) = read(row)
    assert one == Preference((U("q"),), (A("a"),), (A("b"),), (), "chats.jsonl, line 1")


def test_a_judged_answer_and_a_document():
    assert read({"prompt": "q", "completion": "a", "label": False}) == [
        Judgement(Conversation((U("q"), A("a")), (), "chats.jsonl, line 1"), False)
    ]
    assert read({"text": " t\n"}) == [Document(" t\n", "chats.jsonl, line 1")]


@pytest.mark.parametrize(("label", "wanted"), [("True", True), ("false", False), ("1", True), (0, False)])
def test_a_table_of_text_says_true_and_false_in_words(label, wanted):
    assert read({"prompt": "q", "completion": "a", "label": label})[0].is_good is wanted


def test_columns_of_other_names_are_mapped():
    row = {"Frage": "q", "Antwort": "a", "Quelle": "a book"}
    columns = {"prompt": "Frage", "response": "Antwort"}
    with pytest.raises(ConfigError, match=r"column='Quelle' carries text \('a book'\).*ignore_columns: \[Quelle\]"):
        read(row, columns=columns)
    (one,) = read(row, columns=columns, ignore_columns=["Quelle"])
    assert one.turns == (U("q"), A("a"))


def test_optional_columns_may_begin_in_a_later_row():
    first, second = read({"prompt": "q", "completion": "a"}, {"system": "s", "prompt": "q", "completion": "a"})
    assert (len(first.turns), len(second.turns)) == (2, 3)


def messages(*turns):
    return {"messages": [{"role": role, "content": text} for role, text in turns]}


REFUSED = {
    "unknown format": ({"a": "x", "b": "y"}, "columns=a, b are of no known format; .*columns: {prompt: a"),
    "lost text in a later row": (
        [{"prompt": "q", "completion": "a"}, {"prompt": "q", "completion": "a", "note": "read me"}],
        "line 2: column='note' carries text",
    ),
    "mixed formats": (
        [{"prompt": "q", "completion": "a"}, messages(("user", "q"), ("assistant", "a"))],
        "line 2: columns=messages lack 'prompt', 'completion'",
    ),
    "no object": ([{"prompt": "q", "completion": "a"}, ["q", "a"]], "line 2: the row is a list"),
    "a list of answers": (
        {"instruction": "q", "output": ["a", "b"]},
        r"output=\['a', 'b'\] is a list",
    ),
    "a number": ({"prompt": "q", "completion": 4}, "completion=4 is a int"),
    "user twice": (messages(("user", "q"), ("user", "q")), "turn 2 is of 'user' right after another"),
    "assistant first": (messages(("assistant", "a")), "turn 1 is of 'assistant' and answers nobody"),
    "system in the middle": (
        messages(("user", "q"), ("assistant", "a"), ("system", "s")),
        "turn 3 is of 'system' and not the first",
    ),
    "a tool that nobody called": (messages(("user", "q"), ("tool", "t")), "no assistant has called it"),
    "no answer": (messages(("user", "q")), "hold no turn of the assistant"),
    "unknown role": (messages(("usr", "q")), r"messages\[0\]: role='usr' is unknown.*Did you mean 'user'"),
    "no turn": ({"messages": []}, "column='messages' is empty.*format 'messages'"),
    "no answer in the first row": ({"prompt": "q", "completion": ""}, "column='completion' is empty"),
    "an image": (
        {
            "messages": [
                {"role": "user", "content": [{"type": "image", "url": "x"}]},
                {"role": "assistant", "content": "a"},
            ]
        },
        "part of type='image'",
    ),
    "a part without text": (
        {"messages": [{"role": "user", "content": [{"type": "text"}]}, {"role": "assistant", "content": "a"}]},
        "part of type='text'",
    ),
    "equal answers": ({"prompt": "q", "chosen": "a", "rejected": "a"}, "chosen and rejected are equal"),
    "preference without a prompt": ({"chosen": "a", "rejected": "b"}, "no prompt stands beside them"),
    "label": ({"prompt": "q", "completion": "a", "label": "good"}, "label='good' is neither true nor false"),
    "history": ({"instruction": "q", "output": "a", "history": ["x"]}, "no list of pairs"),
}


@pytest.mark.parametrize(("rows", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_not_understood_is_refused_with_its_line(rows, message):
    rows = rows if isinstance(rows, list) else [rows]
    with pytest.raises(ConfigError, match=message) as refused:
        read(*rows)
    assert f"chats.jsonl, line {len(rows)}" in str(refused.value)


def test_a_wrong_name_in_columns_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match="columns='promt' is no field.*Did you mean 'prompt'"):
        read({"prompt": "q", "completion": "a"}, columns={"promt": "prompt"})
    with pytest.raises(ConfigError, match="column='Frag' is not there.*Did you mean 'Frage'"):
        read({"Frage": "q", "completion": "a"}, columns={"prompt": "Frag"})
