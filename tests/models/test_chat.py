"""Answers are those of transformers, in whole characters, and end where the template or the caller ends them."""

import runpy
from contextlib import closing
from pathlib import Path

import pytest
import torch
from chat_formats import tokenizer_with

from featherweight.errors import ConfigError
from featherweight.models.chat import AnswerOptions, Chat, GrowingText, Writer, encode_text
from featherweight.models.tokenizer import byte_tokenizer

MODELS = runpy.run_path(str(Path(__file__).parents[1] / "reference" / "causal_models.py"))


@pytest.fixture(scope="module")
def tokenizer():
    return tokenizer_with("smollm2")


@pytest.fixture(scope="module")
def model(tokenizer):
    sizes = {"vocab_size": len(tokenizer), "max_position_embeddings": 1024, "eos_token_id": 256}
    return MODELS["causal_model"]("llama", **sizes).eval()


def reference(model, tokenizer, messages, count):
    inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    ids = model.generate(**inputs, do_sample=False, max_new_tokens=count, pad_token_id=256)
    return tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def test_greedy_answers_of_several_turns_are_those_of_transformers(model, tokenizer):
    chat = Chat(model, tokenizer, system="You are brief.", options=AnswerOptions(max_new_tokens=12))
    messages = [{"role": "system", "content": "You are brief."}]
    for question in ("What is red?", "And green?", "Ümläute 🎉?"):
        messages.append({"role": "user", "content": question})
        answer = reference(model, tokenizer, messages, 12)
        assert "".join(chat.ask(question)) == answer
        messages.append({"role": "assistant", "content": answer})
    assert chat.messages == messages


def test_what_was_read_before_is_not_read_again_and_changes_nothing(model, tokenizer):
    known = Writer(model, tokenizer, AnswerOptions(max_new_tokens=5))
    first = [*range(40, 60)]
    list(known.write(first))
    longer = [*known._decoding.token_ids[0].tolist(), 70, 71]
    read, original = [], model.forward
    model.forward = lambda *args, **options: read.append(options["input_ids"].shape[1]) or original(*args, **options)
    try:
        again = "".join(known.write(longer))
    finally:
        del model.forward
    assert read[0] == 2  # mutation: without the reuse it is the length of the whole prompt
    assert again == "".join(Writer(model, tokenizer, AnswerOptions(max_new_tokens=5)).write(longer))


def test_an_answer_ends_before_its_stop_token(model, tokenizer):
    free = Writer(model, tokenizer, AnswerOptions(max_new_tokens=8))
    list(free.write([65, 66]))
    ids = free._decoding.token_ids[0, 2:].tolist()
    stop = ids[3]
    ended = Writer(model, tokenizer, AnswerOptions(max_new_tokens=8), stops={stop})
    text = "".join(ended.write([65, 66]))
    assert text == tokenizer.decode(ids[: ids.index(stop)])
    assert (ended.facts.new_tokens, ended.facts.is_cut) == (ids.index(stop) + 1, False)
    assert free.facts.is_cut and free.facts.tokens_per_s > 0


def test_a_caller_that_stops_early_leaves_question_and_what_was_said(model, tokenizer):
    chat = Chat(model, tokenizer, options=AnswerOptions(max_new_tokens=30))
    with closing(chat.ask("What is red?")) as pieces:
        first = next(pieces)
    assert [turn["content"] for turn in chat.messages] == ["What is red?", first]
    assert chat.facts.is_cut and chat.facts.new_tokens >= 1
    # The conversation goes on as transformers would from these words.
    messages = [*chat.messages, {"role": "user", "content": "More?"}]
    assert "".join(chat.ask("More?")) == reference(model, tokenizer, messages, 30)


def test_the_same_seed_gives_the_same_words_after_a_reset(model, tokenizer):
    options = AnswerOptions(max_new_tokens=12, temperature=1.0, top_p=0.9, seed=3)
    chat = Chat(model, tokenizer, options=options)
    first = "".join(chat.ask("Hi"))
    second = "".join(chat.ask("Hi"))
    chat.reset()
    assert chat.messages == []
    assert "".join(chat.ask("Hi")) == first != second
    other = Chat(model, tokenizer, options=options.override(["seed=4"], where="test"))
    assert "".join(other.ask("Hi")) != first


def test_a_full_context_is_refused_and_nothing_is_recorded(model, tokenizer):
    chat = Chat(model, tokenizer, options=AnswerOptions(max_new_tokens=4))
    list(chat.ask("Hi"))
    before = list(chat.messages)
    with pytest.raises(ConfigError, match="fill the model's context of 1024 tokens"):
        list(chat.ask("x" * 1024))
    assert chat.messages == before


def test_a_tokenizer_without_template_is_refused(model):
    with pytest.raises(ConfigError, match="has no chat template"):
        Chat(model, byte_tokenizer())


@pytest.mark.parametrize("text", ["plain", "né 👩‍🚀 🎉", "שלום", "  two\n\n blanks  "])
def test_pieces_are_whole_characters_and_make_the_text(text):
    tokenizer = byte_tokenizer()
    growing = GrowingText(tokenizer)
    pieces = [growing.add(one) for one in tokenizer(text)["input_ids"]]
    assert "".join(pieces) == text and growing.rest() == ""
    assert not any("\ufffd" in piece for piece in pieces)


def test_a_broken_character_at_the_end_is_shown_as_such():
    growing = GrowingText(byte_tokenizer())
    assert growing.add(0xC3) == "" and growing.rest() == "\ufffd"


def test_a_prompt_has_no_token_that_would_end_it_and_is_never_empty():
    tokenizer = byte_tokenizer()
    assert encode_text(tokenizer, "Hi") == [72, 105]
    assert encode_text(tokenizer, "") == [256]
    assert torch.tensor(encode_text(tokenizer, "a<|endoftext|>")).tolist() == [97]
