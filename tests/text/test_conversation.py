"""Turns, preferences, and orders that no template means."""

import pytest

from featherweight.errors import ConfigError
from featherweight.text.conversation import Conversation, Preference, Turn, check, shared_beginning


def turns(roles):
    names = {"s": "system", "u": "user", "a": "assistant", "t": "tool"}
    return tuple(Turn(names[role], f"{role}{number}") for number, role in enumerate(roles))


@pytest.mark.parametrize("roles", ["ua", "sua", "uaua", "uata", "suattaua", "sua" + "ua" * 5])
def test_orders_that_templates_mean_pass(roles):
    check(Conversation(turns(roles)))


@pytest.mark.parametrize(
    ("roles", "message"),
    [
        ("a", "turn 1 is of 'assistant' and answers nobody"),
        ("sa", "turn 2 is of 'assistant' and answers nobody"),
        ("uua", "turn 2 is of 'user' right after another"),
        ("uaa", "turn 3 is of 'assistant' right after another"),
        ("usa", "turn 2 is of 'system' and not the first"),
        ("uta", "turn 2 is of 'tool' and no assistant has called it"),
        ("su", "hold no turn of the assistant"),
        ("", "hold no turn of the assistant"),
    ],
)
def test_other_orders_are_named_with_the_place_of_the_row(roles, message):
    with pytest.raises(ConfigError, match=f"chats.jsonl:7: .*{message}"):
        check(Conversation(turns(roles), where="chats.jsonl:7"))


def test_the_prompt_is_all_before_the_last_answer():
    conversation = Conversation(turns("suaua"))
    assert conversation.answers == [2, 4] and conversation.prompt.turns == conversation.turns[:4]
    assert conversation.messages(2) == [{"role": "system", "content": "s0"}, {"role": "user", "content": "u1"}]


def test_a_preference_is_two_conversations_that_begin_alike():
    answers = (Turn("assistant", "yes"),), (Turn("assistant", "no"),)
    one, other = Preference(turns("su"), *answers, where="here").conversations()
    assert one.turns == (*turns("su"), *answers[0]) and other.turns[-1].content == "no" and one.where == "here"
    assert shared_beginning(one.turns, other.turns) == 2 and shared_beginning(one.turns, one.turns) == 3
