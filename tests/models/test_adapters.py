"""Generation with an adapter for each prompt: texts and tokens, transformers' loop and our own."""

import peft
import pytest
import torch

import featherweight as fw
from featherweight.errors import ConfigError
from featherweight.methods.s2ft.layer import s2ft_layers
from featherweight.models import byte_tokenizer, load_model
from featherweight.models.adapters import generate_with_adapters
from featherweight.models.generation import generate, prefill


@pytest.fixture(scope="module")
def bank():
    tuned = peft.get_peft_model(load_model("tiny").double(), fw.S2FTConfig(num_channels=8))
    for layer in s2ft_layers(tuned).values():
        delta = layer.s2ft_delta["default"]
        delta.data = torch.randn(delta.shape, generator=torch.Generator().manual_seed(0), dtype=delta.dtype)
    base = load_model("tiny").double().eval()
    with fw.s2ft.AdapterBank(base, slots=2, tokenizer=byte_tokenizer()) as bank:
        bank.add("changed", fw.s2ft.Adapter.of_model(tuned))
        yield bank


NAMES = ["changed", "__base__"]
OPTIONS = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "pad_token_id": 0}


def test_texts_of_different_lengths_go_on_as_they_do_alone(bank):
    prompts = ["a longer prompt", "short"]
    together = bank.generate(prompts, adapters=NAMES, **OPTIONS)
    assert all(isinstance(text, str) for text in together)
    for text, prompt, name in zip(together, prompts, NAMES, strict=True):
        assert [text] == bank.generate([prompt], adapters=[name], **OPTIONS)
    assert together == generate_with_adapters(bank, prompts, adapters=NAMES, tokenizer=bank.tokenizer, **OPTIONS)


def test_the_own_loop_inside_of_the_bank_chooses_the_same_tokens(bank):
    ids = torch.tensor([[72, 105, 33], [72, 105, 33]])
    expected = bank.generate(ids, adapters=NAMES, **OPTIONS)
    with bank.using(NAMES) as model:
        found = generate(prefill(model, ids), max_new_tokens=6)
    assert torch.equal(found, expected[:, 3:])
    assert not torch.equal(found[0], found[1])  # the adapter does something


def test_texts_need_a_tokenizer_and_prompts_a_name_each(bank):
    with pytest.raises(ConfigError, match="tokenizer=None cannot read text"):
        generate_with_adapters(bank, ["text"], adapters=["changed"])
    with pytest.raises(ConfigError, match="adapters=1 names for 2 prompts"):
        bank.generate(["one", "two"], adapters=["changed"])
