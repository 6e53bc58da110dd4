import math

import pytest
import torch
from guard_models import random_guard, word_tokenizer
from guard_stand_in import FORBIDDEN, generated_world, load_fixture, load_guard, marked
from tiny_models import prompt, tiny_model

from featherweight.guard.guarded_model import GuardedModel

WORLD = generated_world()


def test_a_model_in_bf16_and_one_inside_peft_are_guarded_alike():
    import copy

    peft = pytest.importorskip("peft")
    ids, guard = prompt(3, 9), random_guard("llama").with_threshold(math.inf)
    lora = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    for model in (
        copy.deepcopy(tiny_model("llama")).bfloat16(),
        peft.get_peft_model(copy.deepcopy(tiny_model("llama")), lora).eval(),
    ):
        output = GuardedModel(model, word_tokenizer(), guard).generate(
            input_ids=ids, max_new_tokens=6, do_sample=False, pad_token_id=0
        )
        plain = model.generate(input_ids=ids, max_new_tokens=6, do_sample=False, pad_token_id=0)
        assert torch.equal(output, plain)


def test_pieces_of_a_stream_are_the_answer_and_the_verdict_stands_before_the_first():
    model = GuardedModel(*load_fixture(), load_guard())
    turns = [{"role": "user", "content": WORLD.prompts("test", "ordinary", 1)[0]}]
    pieces = model.stream(turns, max_new_tokens=12)
    first = next(pieces)
    assert model.verdict is not None and not model.verdict.flagged
    assert first + "".join(pieces) == model.chat(turns, max_new_tokens=12)
    bad = [{"role": "user", "content": marked(WORLD.prompts("test", FORBIDDEN, 1)[0])}]
    assert model.chat(bad) == model.guard.options.refusal_text and model.verdict.flagged


def test_everything_else_is_the_model():
    model, tokenizer = load_fixture()
    guarded = GuardedModel(model, tokenizer, load_guard())
    assert guarded.config is model.config and guarded.device == model.device
    with pytest.raises(AttributeError):
        guarded.no_such_thing  # noqa: B018
    with pytest.raises(ValueError, match="custom_generate"):
        guarded.generate(torch.tensor([[1]]), custom_generate=print)


def test_a_model_with_int8_weights_is_guarded_and_what_passes_gets_its_own_tokens():
    import featherweight as fw

    model, tokenizer = load_fixture()
    fw.apply(model, fw.Int8())
    guarded = GuardedModel(model, tokenizer, load_guard(), allow_mismatch=True)
    for text in (*WORLD.prompts("test", "ordinary", 2), marked(WORLD.prompts("test", FORBIDDEN, 1)[0])):
        inputs = tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        output = guarded.generate(**inputs, max_new_tokens=6, do_sample=False, return_guard=True)
        assert output.guard[0].flagged == text.startswith("zorp")
        plain = model.generate(**inputs, max_new_tokens=6, do_sample=False)
        assert output.guard[0].flagged or torch.equal(output.sequences, plain)
