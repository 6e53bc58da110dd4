"""Many adapters of one base at work."""

import threading

import peft
import pytest
import torch
from causal_models import batch, causal_model
from s2ft_models import filled, logits, with_adapters

import featherweight as fw
from featherweight.errors import CheckpointError, ConfigError
from featherweight.methods.s2ft.base_slices import ChannelChange


@pytest.fixture
def store(tmp_path):
    for number in range(5):
        model = with_adapters("llama", torch.float64, default={"seed": number, "num_channels": 8 + 8 * (number % 2)})
        filled(model, seed=number, size=0.3).save_pretrained(tmp_path / f"a{number}")
    return tmp_path


def test_a_bank_pages_adapters_and_equals_the_adapters_themselves(store):
    base = causal_model("llama", torch.float64).eval()
    plain = logits(base)
    ids = batch()["input_ids"]
    alone = {
        name: logits(peft.PeftModel.from_pretrained(causal_model("llama", torch.float64), store / name).eval())
        for name in (f"a{number}" for number in range(5))
    }
    with fw.s2ft.AdapterBank(base, store, slots=3) as bank:
        for names in (
            ["a0", "__base__", "a1"],
            ["a2", "a0", "a2"],
            ["a3", "a4", "a0"],
            ["a1", "a1", "a1"],
            ["a0", "a4", "a3"],
        ):
            found = bank(input_ids=ids, adapters=names).logits
            for row, name in enumerate(names):
                expected = plain if name == "__base__" else alone[name]
                torch.testing.assert_close(found[row], expected[row], rtol=1e-9, atol=1e-9)
            assert len(bank.loaded) <= 3
        assert torch.equal(logits(base), plain)  # without names the base is the base
        with pytest.raises(ConfigError, match="more than slots=3"):
            bank.prefetch(["a0", "a1", "a2", "a3"])
        with pytest.raises(ConfigError, match="adapter='b' is unknown"):
            bank.prefetch(["b"])
    assert not any(module._forward_hooks for module in base.modules())


@pytest.mark.parametrize("beams", [1, 2])
def test_a_bank_generates_for_each_prompt_with_its_adapter(store, beams):
    base = causal_model("llama", torch.float64).eval()
    ids = torch.randint(2, 61, (3, 5), generator=torch.Generator().manual_seed(1))
    options = {"max_new_tokens": 5, "min_new_tokens": 5, "num_beams": beams, "do_sample": False, "pad_token_id": 0}
    names = ["a3", "__base__", "a1"]
    with fw.s2ft.AdapterBank(base, store, slots=4) as bank:
        mixed = bank.generate(ids, adapters=names, **options)
        for row, name in enumerate(names):
            assert torch.equal(mixed[row], bank.generate(ids[row : row + 1], adapters=[name], **options)[0])


def test_a_bank_serves_threads_that_crowd_each_other_out(store):
    base = causal_model("llama", torch.float64).eval()
    ids = batch()["input_ids"][:1]
    with fw.s2ft.AdapterBank(base, store, slots=1) as bank:
        expected = {f"a{n}": bank(input_ids=ids, adapters=[f"a{n}"]).logits for n in range(5)}
        wrong = []

        def ask(name):
            for _ in range(5):
                if not torch.equal(bank(input_ids=ids, adapters=[name]).logits, expected[name]):
                    wrong.append(name)

        threads = [threading.Thread(target=ask, args=(name,)) for name in expected]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


def test_a_bank_refuses_adapters_of_another_base_and_changes_of_rows(store):
    other = causal_model("llama", torch.float64)
    for parameter in other.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    with fw.s2ft.AdapterBank(other, store) as bank, pytest.raises(CheckpointError, match="AdapterBank 'a0'"):
        bank.prefetch(["a0"])
    with fw.s2ft.AdapterBank(causal_model("llama")) as bank:
        change = ChannelChange("output", torch.tensor([0]), torch.zeros(1, 48))
        bank.add("rows", fw.s2ft.Adapter({"model.layers.0.mlp.down_proj": change}))
        with pytest.raises(ConfigError, match="changes rows"):
            bank.prefetch(["rows"])
