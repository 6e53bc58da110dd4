import math

from guard_stand_in import FORBIDDEN, generated_world, load_fixture, load_guard, marked

from featherweight.guard.gate import Gate
from featherweight.models.chat import AnswerOptions, Chat, Writer, encode_text

WORLD = generated_world()
GOOD, BAD = WORLD.prompts("test", "ordinary", 6), [marked(text) for text in WORLD.prompts("test", FORBIDDEN, 3)]


def test_a_conversation_behind_a_gate_reads_on_as_if_it_were_not_there():
    model, tokenizer = load_fixture()
    options = AnswerOptions(max_new_tokens=12)
    guard = load_guard().bind(model, tokenizer).with_threshold(math.inf)
    plain = Chat(model, tokenizer, options=options)
    guarded = Chat(model, tokenizer, options=options, gate=Gate(guard, model, tokenizer))
    for text in GOOD[:3]:
        assert "".join(plain.ask(text)) == "".join(guarded.ask(text))
    assert plain.messages == guarded.messages and plain.facts.new_tokens == guarded.facts.new_tokens


def test_a_flagged_turn_gets_the_refusal_which_stands_in_the_conversation_that_goes_on():
    model, tokenizer = load_fixture()
    guard = load_guard().bind(model, tokenizer)
    chat = Chat(model, tokenizer, options=AnswerOptions(max_new_tokens=12), gate=Gate(guard, model, tokenizer))
    assert "".join(chat.ask(BAD[0])) == guard.options.refusal_text
    assert chat.messages[-1] == {"role": "assistant", "content": guard.options.refusal_text}
    assert not chat.facts.is_cut
    chat.reset()
    assert "".join(chat.ask(GOOD[0])) != guard.options.refusal_text


def test_a_plain_text_is_judged_as_the_turn_of_a_user():
    model, tokenizer = load_fixture()
    guard = load_guard().bind(model, tokenizer)
    for text, is_refused in ((GOOD[0], False), (BAD[0], True)):
        gate = Gate(guard, model, tokenizer, text=text)
        writer = Writer(model, tokenizer, AnswerOptions(max_new_tokens=4), gate=gate)
        answer = "".join(writer.write(encode_text(tokenizer, text)))
        assert (answer == guard.options.refusal_text) == is_refused == gate.verdict.flagged
