"""Conversations become rows: roles that are learnt, whole turns that are cut, packing."""

from featherweight.models import byte_tokenizer
from featherweight.models.templates import choose_template
from featherweight.text.chat_rows import ChatEncoder, ChatRow, Fitting, packed, positions
from featherweight.text.conversation import Conversation, Turn

TURNS = (
    Turn("user", "rain?"),
    Turn("assistant", "look"),
    Turn("tool", "dry"),
    Turn("assistant", "no"),
    Turn("user", "ok"),
)


def encoder(train_on, max_tokens=1000):
    tokenizer = byte_tokenizer()
    choose_template(tokenizer, "chatml")
    return ChatEncoder(tokenizer, train_on, max_tokens, "cut_turns", 300)


def learnt(train_on, turns=TURNS, **options):
    coder, fitting = encoder(train_on, **options), Fitting()
    row = coder.row(Conversation(turns, (), "c.jsonl, line 1"), fitting)
    if row is None:
        return None, fitting
    runs, run = [], []
    for label in [*row.labels, -100]:
        if label != -100:
            run.append(label)
        elif run:
            runs.append(coder.tokenizer.decode(run).removesuffix("<|im_end|>"))
            run = []
    return runs, fitting


def test_turns_of_the_roles_that_are_named_are_learnt():
    assert learnt("assistant")[0] == learnt(["assistant"])[0] == ["look", "no"]
    assert learnt("last")[0] == ["no"]
    assert learnt(["assistant", "tool"])[0] == ["look", "dry", "no"]
    assert learnt(["user"])[0] == ["rain?", "ok"]


def test_a_row_without_a_turn_to_learn_is_left_out_and_counted():
    row, fitting = learnt(["tool"], TURNS[:2])
    assert row is None and fitting.without == 1 and fitting.left_out == 0


def test_a_row_that_is_too_long_ends_with_a_turn_that_is_learnt():
    long = (*TURNS[:4], Turn("user", "x" * 200), Turn("assistant", "y"))
    found, fitting = learnt(["assistant", "tool"], long, max_tokens=150)
    assert found == ["look", "dry", "no"] and (fitting.cut, fitting.turns_cut) == (1, 2)


def test_packing_fills_rows_and_numbers_positions_from_each_start():
    rows = [ChatRow(tuple(range(n)), tuple(range(n))) for n in (5, 3, 3, 2, 1)]
    joined = packed(rows, 7)
    assert sorted(len(row.ids) for row in joined) == [7, 7]
    assert positions(joined, 7).eq(0).sum() == 5
    assert all(row.labels[start] == -100 for row in joined for start in row.starts)
