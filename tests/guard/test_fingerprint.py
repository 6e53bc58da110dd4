import copy

import pytest
import torch
from guard_stand_in import load_fixture, load_guard

from featherweight.errors import CheckpointError
from featherweight.guard.fingerprint import check_fingerprint, fingerprint
from featherweight.guard.guarded_model import GuardedModel


def test_a_guard_of_another_model_tokenizer_or_template_is_refused():
    model, tokenizer = load_fixture()
    guard = load_guard()
    assert GuardedModel(copy.deepcopy(model).bfloat16(), tokenizer, guard)
    tuned = copy.deepcopy(model)
    with torch.no_grad():
        for weight in tuned.parameters():
            weight.mul_(1.03)
    with pytest.raises(CheckpointError, match="weights=.* of this model differs"):
        GuardedModel(tuned, tokenizer, guard)
    assert GuardedModel(tuned, tokenizer, guard, allow_mismatch=True)
    other = copy.deepcopy(tokenizer)
    other.chat_template = other.chat_template.replace("<|end|>", " <|end|>")
    with pytest.raises(CheckpointError, match="chat template differs"):
        GuardedModel(model, other, guard)
    other = copy.deepcopy(tokenizer)
    other.add_tokens(["<new>"])
    with pytest.raises(CheckpointError, match="tokenizer differs"):
        GuardedModel(model, other, guard)


@pytest.mark.slow
def test_an_adapter_makes_another_model_and_its_removal_the_old_one_again():
    peft = pytest.importorskip("peft")
    model, tokenizer = load_fixture()
    stored = fingerprint(model, tokenizer)
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    adapted = peft.get_peft_model(copy.deepcopy(model), config)
    with pytest.raises(CheckpointError, match="weights=.* of this model"):
        check_fingerprint(stored, adapted, tokenizer)
    check_fingerprint(fingerprint(adapted, tokenizer), adapted, tokenizer)
    check_fingerprint(stored, adapted.unload(), tokenizer)


def test_a_template_that_writes_the_date_is_the_same_one_tomorrow():
    model, tokenizer = load_fixture()
    dated = copy.deepcopy(tokenizer)
    dated.chat_template = "{{ strftime_now('%H:%M:%S.%f') }}" + dated.chat_template
    check_fingerprint(fingerprint(model, dated), model, dated)
