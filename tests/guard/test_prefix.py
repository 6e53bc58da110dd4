import pytest
from guard_stand_in import load_fixture

from featherweight.errors import ConfigError
from featherweight.guard.prefix import answer_ids, judged_messages, prefix_ids
from featherweight.models.tokenizer import byte_tokenizer

USER = {"role": "user", "content": "Hello"}


@pytest.fixture(scope="module")
def tokenizer():
    return load_fixture()[1]


def test_a_prefix_has_the_same_tokens_behind_every_prompt_and_they_read_as_its_text(tokenizer):
    preamble, ids = prefix_ids(tokenizer, "I'm sorry, but I cannot")
    assert preamble == () and tokenizer.decode(ids) == "I'm sorry, but I cannot"
    prompt, _ = answer_ids(tokenizer, [USER])
    whole = (
        tokenizer.apply_chat_template([USER], add_generation_prompt=True, tokenize=False) + "I'm sorry, but I cannot"
    )
    assert [*prompt, *ids] == tokenizer(whole, add_special_tokens=False)["input_ids"]


def test_where_a_token_would_reach_over_the_boundary_the_prefix_is_encoded_alone():
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %} so"
    _, ids = prefix_ids(tokenizer, " I")
    assert tokenizer.decode(ids) == " I"


def test_blanks_at_the_end_and_nothing_at_all_are_refused(tokenizer):
    for text in ("I cannot ", "", "  "):
        with pytest.raises(ConfigError, match="expected the opening of a reply"):
            prefix_ids(tokenizer, text)


def test_a_template_that_opens_a_block_of_thoughts_asks_for_a_preamble(tokenizer):
    import copy

    thinking = copy.deepcopy(tokenizer)
    thinking.chat_template = thinking.chat_template.replace("'<|assistant|>'", "'<|assistant|><think>\\n'")
    with pytest.raises(ConfigError, match="block of thoughts"):
        prefix_ids(thinking, "I cannot")
    preamble, ids = prefix_ids(thinking, "I cannot", preamble="</think>\n\n")
    assert thinking.decode([*preamble, *ids]) == "</think>\n\nI cannot"


def test_a_tokenizer_without_a_template_is_refused():
    with pytest.raises(ConfigError, match="has no chat template"):
        prefix_ids(byte_tokenizer(), "I cannot")


def test_the_beginning_of_an_answer_is_no_part_of_what_is_judged(tokenizer):
    begun = [USER, {"role": "assistant", "content": "Sure"}]
    assert judged_messages(begun) == [USER]
    prompt, ids = answer_ids(tokenizer, begun)
    assert prompt == answer_ids(tokenizer, [USER])[0] and tokenizer.decode(ids) == "Sure"
    with pytest.raises(ConfigError, match="no turn of a user"):
        answer_ids(tokenizer, [begun[1]])


@pytest.mark.parametrize("content", ["", "😀 ünï", "two\nlines", "<|end|>", "a" * 50])
def test_any_text_can_be_judged(tokenizer, content):
    prompt, _ = answer_ids(tokenizer, [{"role": "user", "content": content}])
    assert prompt
