"""Chat templates: the tokens are the template's, the learnt ones are those that the assistant says."""

import pytest
from chat_formats import TEMPLATES, WITHOUT_SYSTEM, by_hand, tokenizer_with

from featherweight.errors import ConfigError
from featherweight.models.templates import (
    TEMPLATES as NAMED,
)
from featherweight.models.templates import (
    choose_template,
    encode_conversation,
    encode_prompt,
    stop_ids,
)
from featherweight.models.tokenizer import byte_tokenizer

CONVERSATIONS = {
    "one turn": ["What is red?", "Blood."],
    "markdown headings": ["Explain.", "Three steps:\n\n#### Step 1\nDo this.\n\n#### Step 2\nDo that."],
    "code with leading blanks": ["Indent it.", "    return x\n"],
    "emoji": ["Feel?", "👩‍🚀 fine 🎉"],
    "right to left": ["שלום?", "مرحبا بالعالم"],
    "an answer that repeats the question": ["a", "a"],
    "words that look like marks": ["Say it.", "assistant\nuser\n### Response:"],
    "many turns": [text for n in range(50) for text in (f"question {n}", f"answer {n}")],
    "line breaks at the end": ["x", "y\n\n\n"],
}


def messages_of(texts, system=None):
    turns = [] if system is None else [{"role": "system", "content": system}]
    return [*turns, *({"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(texts))]


@pytest.mark.parametrize("texts", CONVERSATIONS.values(), ids=CONVERSATIONS)
@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("system", [None, "You are a pirate."])
def test_tokens_and_labels_are_those_written_by_hand(name, texts, system):
    if system is not None and name in WITHOUT_SYSTEM:
        pytest.skip("this template refuses system turns")
    tokenizer = tokenizer_with(name)
    messages = messages_of(texts, system)
    ids, labels = [], []
    for text, is_learnt in by_hand(name, messages):
        piece = tokenizer(text, add_special_tokens=False)["input_ids"]
        ids += piece
        labels += piece if is_learnt else [-100] * len(piece)
    encoded = encode_conversation(tokenizer, messages)
    assert list(encoded.ids) == ids
    assert list(encoded.ids) == tokenizer.apply_chat_template(messages, return_dict=True)["input_ids"]
    assert encoded.labels() == labels
    last = encoded.labels([-1])
    assert last == [-100] * encoded.answer_spans[-1][0] + labels[encoded.answer_spans[-1][0] :]


@pytest.mark.parametrize("name", NAMED)
@pytest.mark.parametrize("texts", CONVERSATIONS.values(), ids=CONVERSATIONS)
def test_named_templates_have_the_masks_of_transformers(name, texts):
    tokenizer = byte_tokenizer()
    choose_template(tokenizer, name)
    messages = messages_of(texts)
    theirs = tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
    encoded = encode_conversation(tokenizer, messages)
    assert list(encoded.ids) == theirs["input_ids"]
    assert [int(label != -100) for label in encoded.labels()] == list(theirs["assistant_masks"])


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_prompt_is_what_stands_before_the_answer(name):
    tokenizer = tokenizer_with(name)
    messages = messages_of(["q1", "a1", "q2", "a2"])
    encoded = encode_conversation(tokenizer, messages)
    start = encoded.answer_spans[-1][0]
    assert encode_prompt(tokenizer, messages[:-1]) == list(encoded.ids[:start])


@pytest.mark.parametrize(
    ("name", "mark"),
    [
        ("smollm2", "<|im_end|>"),
        ("llama3", "<|eot_id|>"),
        ("mistral", "<|endoftext|>"),
        ("gemma", "<end_of_turn>"),
        ("qwen", "<|im_end|>"),
    ],
)
def test_an_answer_ends_with_the_mark_of_its_template(name, mark):
    tokenizer = tokenizer_with(name)
    found = stop_ids(tokenizer)
    assert found[0] == tokenizer.convert_tokens_to_ids(mark)
    assert tokenizer.eos_token_id in found


def test_a_tool_call_is_learnt_and_the_tools_answer_is_not():
    tokenizer = tokenizer_with("qwen")
    call = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Dhaka"}}}
    messages = [
        {"role": "user", "content": "Rain?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "no"},
        {"role": "assistant", "content": "It is dry."},
    ]
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {}}}]
    encoded = encode_conversation(tokenizer, messages, tools=tools)
    said = [tokenizer.decode(encoded.ids[start:stop]) for start, stop in encoded.answer_spans]
    assert "weather" in tokenizer.decode(encoded.ids[: encoded.answer_spans[0][0]])
    assert '"city": "Dhaka"' in said[0] and said[0].endswith("<|im_end|>")
    assert said[1] == "It is dry.<|im_end|>"


def test_a_token_never_reaches_from_a_prompt_into_its_answer():
    # A tokenizer that knows "\n  " as one token: a model that generates never sees it behind a prompt.
    from tokenizers import Tokenizer, models, pre_tokenizers
    from tokenizers.decoders import ByteLevel
    from transformers import PreTrainedTokenizerFast

    letters = [*"abcdefghijklmnopqrstuvwxyz<|>_Ċ", "Ġ", "ĊĠ", "ĊĠĠ"]
    vocabulary = {token: index for index, token in enumerate(letters)}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[("Ċ", "Ġ"), ("ĊĠ", "Ġ")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="z")
    choose_template(tokenizer, "chatml")
    messages = messages_of(["q", "  code"])
    encoded = encode_conversation(tokenizer, messages)
    start, stop = encoded.answer_spans[0]
    assert tokenizer.decode(encoded.ids[start:stop]) == "  code<|im_end|>"
    assert list(encoded.ids[:start]) == encode_prompt(tokenizer, messages[:1])


def test_a_template_that_rewrites_earlier_turns_is_refused_and_the_last_answer_is_the_way_out():
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = (
        "{% for message in messages %}{% if message.role == 'assistant' and not loop.last %}A:short;"
        "{% elif message.role == 'assistant' %}A:{{ message.content }};{% else %}Q:{{ message.content }};{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}A:{% endif %}"
    )
    messages = messages_of(["q", "thought", "r", "b"])
    with pytest.raises(ConfigError, match=r"chats.jsonl, line 7: the chat template writes turn 2 .*train_on: last"):
        encode_conversation(tokenizer, messages, where="chats.jsonl, line 7")
    encoded = encode_conversation(tokenizer, messages, last_only=True)
    assert [tokenizer.decode(encoded.ids[start:stop]) for start, stop in encoded.answer_spans] == ["b;"]


def test_a_template_that_raises_is_a_sentence():
    tokenizer = tokenizer_with("gemma")
    with pytest.raises(ConfigError, match="refuses turns of system, user, assistant: System role not supported"):
        encode_conversation(tokenizer, messages_of(["q", "a"], "pirate"))


def test_a_base_model_gets_a_chosen_template_and_keeps_it():
    tokenizer = byte_tokenizer()
    with pytest.raises(ConfigError, match="has no chat template .* template: chatml or alpaca"):
        choose_template(tokenizer, None)
    with pytest.raises(ConfigError, match="template='alpacca' is unknown.*Did you mean 'alpaca'"):
        choose_template(tokenizer, "alpacca")
    assert choose_template(tokenizer, "alpaca") == tokenizer.chat_template
