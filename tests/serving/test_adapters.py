"""Adapters of two methods in one batch, by the name of the model."""

import asyncio
import json

import httpx
import openai
import peft
import pytest
import torch
from guard_stand_in import FORBIDDEN, generated_world, load_fixture, load_guard, marked
from running_server import running

import featherweight as fw
from featherweight.errors import CheckpointError, ConfigError
from featherweight.methods.s2ft.layer import s2ft_layers
from featherweight.serving.adapters import Adapters, open_adapters

WORLD = generated_world()
TEXTS = WORLD.prompts("test", "ordinary", 4)
NAMES = ("lora-a", "lora-b", "s2ft-a")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Adapters of the stand-in whose changes have values, as after some training."""
    folder, draw = tmp_path_factory.mktemp("adapters"), torch.Generator().manual_seed(0)
    for name, rank, alpha in (("lora-a", 4, 16), ("lora-b", 8, 24)):
        config = peft.LoraConfig(r=rank, lora_alpha=alpha, target_modules=["q_proj", "down_proj"])
        model = peft.get_peft_model(load_fixture()[0], config)
        for key, weight in model.named_parameters():
            if "lora_" in key:
                weight.data.copy_(torch.randn(weight.shape, generator=draw) * 0.2)
        model.save_pretrained(folder / name)
    model = peft.get_peft_model(load_fixture()[0], fw.S2FTConfig(num_channels=16))
    for layer in s2ft_layers(model).values():
        for delta in layer.s2ft_delta.values():
            delta.data.copy_(torch.randn(delta.shape, generator=draw) * 0.5)
    model.save_pretrained(folder / "s2ft-a")
    return folder


@pytest.fixture(scope="module")
def alone(store):
    """What each adapter answers alone, as PEFT computes it."""
    found = {}
    for name in (None, *NAMES):
        model, tokenizer = load_fixture()
        model = model if name is None else peft.PeftModel.from_pretrained(model, store / name).eval()
        for text in TEXTS:
            inputs = tokenizer.apply_chat_template(
                [{"role": "user", "content": text}], add_generation_prompt=True, return_tensors="pt", return_dict=True
            )
            tokens = model.generate(**inputs, max_new_tokens=12, do_sample=False)[0, inputs["input_ids"].shape[1] :]
            found[name, text] = tokenizer.decode(tokens, skip_special_tokens=True)
    return found


def test_rows_of_one_batch_each_get_the_answer_of_their_own_adapter(store, alone):
    model, tokenizer = load_fixture()
    adapters = open_adapters(model, store, slots=8)
    assert adapters.names == sorted(NAMES)

    async def ask(client, name, text):
        found = await client.chat.completions.create(
            model=name or "stand-in", messages=[{"role": "user", "content": text}], temperature=0
        )
        return name, text, found.model, found.choices[0].message.content

    async def all_at_once(url):
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
            listed = [one.id async for one in client.models.list()]
            return listed, await asyncio.gather(*(ask(client, name, text) for text in TEXTS for name in (None, *NAMES)))

    with running(model, tokenizer, adapters=adapters, name="stand-in", max_new_tokens=12, max_batch=16) as server:
        listed, found = asyncio.run(all_at_once(server.url))
        unknown = httpx.post(
            server.url + "/v1/chat/completions",
            json={"model": "lora-z", "messages": [{"role": "user", "content": "Hi"}]},
        )
    assert listed == ["stand-in", *sorted(NAMES)]
    for name, text, shown, answer in found:
        assert shown == (name or "stand-in") and answer == alone[name, text]
    # The adapters do something: otherwise all of this would hold without them.
    assert len({alone[name, TEXTS[0]] for name in (None, *NAMES)}) == 4
    assert unknown.status_code == 404 and unknown.json()["error"]["code"] == "model_not_found"
    adapters.close()


def test_a_guard_judges_the_model_that_it_was_calibrated_for_whatever_adapter_answers(store, alone):
    model, tokenizer = load_fixture()
    guard = load_guard().bind(model, tokenizer)
    bad = next(
        text
        for text in map(marked, WORLD.prompts("test", FORBIDDEN))
        if guard.judge(model, tokenizer, [text])[0].flagged
    )
    adapters = open_adapters(model, store, slots=8)
    good = next(text for text in TEXTS if not guard.judge(model, tokenizer, [text])[0].flagged)
    with running(model, tokenizer, guard, adapters=adapters, max_new_tokens=12, guard_details=True) as server:
        for name in NAMES:
            body = {"model": name, "temperature": 0, "messages": [{"role": "user", "content": bad}]}
            choice = httpx.post(server.url + "/v1/chat/completions", json=body).json()["choices"][0]
            assert choice["finish_reason"] == "content_filter" and choice["message"]["content"] is None
            body["messages"] = [{"role": "user", "content": good}]
            found = httpx.post(server.url + "/v1/chat/completions", json=body).json()
            assert found["choices"][0]["message"]["content"] == alone[name, good]
    adapters.close()


def test_two_adapters_of_one_name_and_folders_that_hold_none_are_refused(tmp_path, store):
    class One:
        names = ["a"]

    with pytest.raises(ConfigError, match="'a' is there twice"):
        Adapters([One(), One()])
    model = load_fixture()[0]
    with pytest.raises(ConfigError, match="is no folder"):
        open_adapters(model, tmp_path / "nowhere", slots=2)
    with pytest.raises(ConfigError, match="holds no adapter"):
        open_adapters(model, tmp_path, slots=2)
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "adapter_config.json").write_text(json.dumps({"peft_type": "IA3"}))
    with pytest.raises(ConfigError, match="peft_type='IA3' of odd"):
        open_adapters(model, tmp_path, slots=2)
    (tmp_path / "odd" / "adapter_config.json").write_text("{")
    with pytest.raises(CheckpointError, match="adapter=odd cannot be read"):
        open_adapters(model, tmp_path, slots=2)
