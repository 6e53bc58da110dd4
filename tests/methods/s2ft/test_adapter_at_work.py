"""Saving, switching, fusing, exporting, comparing and mixing adapters."""

import copy
import json
import subprocess
import sys
import threading
from pathlib import Path

import peft
import pytest
import torch
from causal_models import batch, causal_model

import featherweight as fw
from featherweight.errors import CheckpointError, ConfigError
from featherweight.methods.s2ft.base_slices import ChannelChange
from featherweight.methods.s2ft.layer import s2ft_layers


def filled(model, names=("default",), seed=0, size=0.1):
    generator = torch.Generator().manual_seed(seed)
    for layer in s2ft_layers(model).values():
        for name in names:
            if name in layer.s2ft_delta:
                delta = layer.s2ft_delta[name]
                delta.data.copy_(torch.randn(delta.shape, generator=generator, dtype=torch.float64) * size)
    return model


def with_adapters(architecture="llama", dtype=torch.float32, **configs):
    """Return a model in evaluation mode with an adapter for each entry, of random values."""
    model = None
    for name, options in configs.items():
        config = fw.S2FTConfig(**{"num_channels": 8, **options})
        if model is None:
            model = peft.get_peft_model(causal_model(architecture, dtype), config, adapter_name=name)
        else:
            model.add_adapter(name, config)
    return filled(model, list(configs)).eval()


def logits(model, **options):
    with torch.no_grad():
        return model(input_ids=batch()["input_ids"], **options).logits


# ---- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "phi3", "gpt_neox"])
@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_a_saved_adapter_gives_the_same_logits_bit_by_bit(architecture, low_cpu_mem_usage, tmp_path):
    model = with_adapters(architecture, default={"channel_pattern": {"0.*(o_proj|dense|c_proj)": 3}, "multiple_of": 1})
    expected = logits(model)
    model.save_pretrained(tmp_path)

    loaded = peft.PeftModel.from_pretrained(
        causal_model(architecture), tmp_path, low_cpu_mem_usage=low_cpu_mem_usage
    ).eval()
    loaded.load_adapter(tmp_path, "second", low_cpu_mem_usage=low_cpu_mem_usage)

    assert torch.equal(logits(loaded), expected)
    loaded.set_adapter("second")
    assert torch.equal(logits(loaded), expected)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["peft_type"] == "S2FT" and config["selection"] == "stored"


def test_float32_changes_of_a_bf16_base_survive_every_way_of_loading(tmp_path):
    model = with_adapters("llama", torch.bfloat16, default={})
    model.save_pretrained(tmp_path)
    expected = next(iter(s2ft_layers(model).values())).s2ft_delta["default"]
    assert expected.dtype == torch.float32
    for low_cpu_mem_usage in (False, True):
        base = causal_model("llama", torch.bfloat16)
        loaded = peft.PeftModel.from_pretrained(base, tmp_path, low_cpu_mem_usage=low_cpu_mem_usage)
        assert torch.equal(next(iter(s2ft_layers(loaded).values())).s2ft_delta["default"], expected)


def test_adapter_object_and_peft_write_the_same_model(tmp_path):
    model = with_adapters(default={"axis_pattern": {"down_proj": "output"}})
    fw.s2ft.Adapter.of_model(model).save(tmp_path / "ours")
    model.save_pretrained(tmp_path / "peft")

    for folder in ("ours", "peft"):
        loaded = peft.PeftModel.from_pretrained(causal_model("llama"), tmp_path / folder).eval()
        assert torch.equal(logits(loaded), logits(model)), folder
    fw.s2ft.Adapter.load(tmp_path / "peft").save(tmp_path / "again")
    again = fw.s2ft.Adapter.load(tmp_path / "again")
    assert {change.axis for change in again.modules.values()} == {"input", "output"}


def test_the_base_of_another_model_is_refused_and_a_rounded_one_is_not(tmp_path):
    with_adapters(default={}).save_pretrained(tmp_path)
    other = causal_model("llama")
    for parameter in other.parameters():
        torch.nn.init.normal_(parameter, std=0.2)

    with pytest.raises(CheckpointError, match="expected at most 0.25"):
        peft.PeftModel.from_pretrained(other, tmp_path)
    with pytest.raises(CheckpointError, match="shape="):
        peft.PeftModel.from_pretrained(causal_model("llama", intermediate_size=64), tmp_path)
    peft.PeftModel.from_pretrained(causal_model("llama").bfloat16(), tmp_path)


def test_a_configuration_object_serves_several_models_and_a_loaded_one_none_without_its_file(tmp_path):
    config = fw.S2FTConfig(num_channels=8)
    first, second = (peft.get_peft_model(causal_model(kind), config) for kind in ("llama", "mistral"))
    assert len(s2ft_layers(first)) == len(s2ft_layers(second)) == 4
    first.save_pretrained(tmp_path)

    alone = peft.get_peft_model(causal_model("llama"), peft.PeftConfig.from_pretrained(tmp_path))

    with pytest.raises(CheckpointError, match="has no channels yet"):
        logits(alone)


@pytest.mark.parametrize("damage", ["config", "weights", "method", "newer"])
def test_a_damaged_adapter_is_one_sentence(damage, tmp_path):
    from safetensors.torch import load_file, save_file

    with_adapters(default={}).save_pretrained(tmp_path)
    config, weights = tmp_path / "adapter_config.json", tmp_path / "adapter_model.safetensors"
    if damage == "config":
        config.write_text("{")
    elif damage == "weights":
        weights.write_bytes(weights.read_bytes()[:100])
    elif damage == "method":
        config.write_text(json.dumps({"peft_type": "LORA"}))
    else:
        save_file(load_file(weights), weights, metadata={"s2ft_format_version": "99"})

    with pytest.raises(CheckpointError, match="expected .*\\. .*\\."):
        fw.s2ft.Adapter.load(tmp_path)


def test_training_resumes_bit_by_bit(tmp_path):
    def step(model, optimizer, number):
        model(**batch(seed=number)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    def start(model):
        return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)

    model = peft.get_peft_model(causal_model("llama"), fw.S2FTConfig(num_channels=8))
    optimizer = start(model)
    for number in range(4):
        if number == 2:
            model.save_pretrained(tmp_path)
            torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
        step(model, optimizer, number)

    resumed = peft.PeftModel.from_pretrained(causal_model("llama"), tmp_path, is_trainable=True).train()
    optimizer = start(resumed)
    optimizer.load_state_dict(torch.load(tmp_path / "optimizer.pt", weights_only=True))
    for number in (2, 3):
        step(resumed, optimizer, number)

    for one, other in zip(s2ft_layers(model).values(), s2ft_layers(resumed).values(), strict=True):
        assert torch.equal(one.s2ft_delta["default"], other.s2ft_delta["default"])
        assert torch.equal(one.s2ft_indices["default"], other.s2ft_indices["default"])


# ---- registration ----------------------------------------------------------------------------------------------------


def test_registration_twice_pickle_and_every_look_up():
    import pickle

    fw.s2ft.register()
    fw.s2ft.register()
    kind = peft.PeftType.S2FT

    assert kind is peft.PeftType("S2FT") is peft.PeftType["S2FT"] and kind in list(peft.PeftType)
    assert copy.deepcopy(kind) is kind and pickle.loads(pickle.dumps(kind)) is kind
    assert json.dumps({"peft_type": kind}) == '{"peft_type": "S2FT"}' and kind == "S2FT"
    config = pickle.loads(pickle.dumps(fw.S2FTConfig(num_channels=8)))
    assert config.num_channels == 8 and config.peft_type is kind
    assert len(list(peft.PeftType)) == len(set(peft.PeftType))


@pytest.mark.parametrize(
    "order", ["import featherweight, peft", pytest.param("import peft, featherweight", marks=pytest.mark.slow)]
)
def test_a_fresh_process_opens_an_adapter_after_importing_featherweight(order, tmp_path):
    with_adapters(default={}).save_pretrained(tmp_path)
    program = (
        f"{order}, sys\n"
        f"sys.path.insert(0, {str(Path(__file__).parents[2] / 'reference')!r})\n"
        "from causal_models import causal_model\n"
        f"model = peft.PeftModel.from_pretrained(causal_model('llama'), {str(tmp_path)!r})\n"
        "print(type(model.base_model).__name__)"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, timeout=120)

    assert done.stdout.split() == ["S2FTModel"], done.stderr[-2000:]


# ---- switch, fuse ----------------------------------------------------------------------------------------------------


def test_switch_gives_the_adapter_and_brings_the_base_back():
    model = with_adapters("llama", torch.float64, math={}, code={"seed": 1})
    expected = {}
    for name in ("math", "code"):
        model.set_adapter(name)
        expected[name] = logits(model)
    with model.disable_adapter():
        plain = logits(model)

    for name in ("math", "code", "math"):
        fw.s2ft.switch(model, name)
        torch.testing.assert_close(logits(model), expected[name], rtol=1e-9, atol=1e-9)
    fw.s2ft.switch(model, None)
    with model.disable_adapter():
        assert torch.equal(logits(model), plain)
    with pytest.raises(ConfigError, match="Did you mean 'math'"):
        fw.s2ft.switch(model, "maths")


def test_fuse_is_exactly_the_weighted_sum():
    model = with_adapters("llama", torch.float64, a={"num_channels": 16}, b={"seed": 1}, c={"seed": 2})
    fw.s2ft.fuse(model, ["a", "b", "c"], [1.0, -0.5, 2.0], name="all")
    fw.s2ft.fuse(model, ["a"], [1.0], name="same")
    fw.s2ft.fuse(model, ["all", "b"], [1.0, 0.5], name="without b")
    fw.s2ft.fuse(model, ["a", "c"], [1.0, 2.0], name="a and c")

    for layer in s2ft_layers(model).values():
        dense = {name: layer.get_delta_weight(name) for name in layer.s2ft_delta}
        # float64: three products and two sums of numbers of size 0.1
        torch.testing.assert_close(dense["all"], dense["a"] - 0.5 * dense["b"] + 2 * dense["c"], rtol=0, atol=1e-16)
        assert torch.equal(dense["same"], dense["a"])
        torch.testing.assert_close(dense["without b"], dense["a and c"], rtol=0, atol=1e-16)
        assert layer.s2ft_delta["all"].requires_grad is False
    assert model.active_adapter == "a"


def test_disjoint_adapters_keep_their_rows_bit_by_bit_and_exclude_makes_them():
    first = fw.S2FTConfig(num_channels=8)
    model = peft.get_peft_model(causal_model("llama"), first, adapter_name="a")
    model.add_adapter("b", fw.S2FTConfig(num_channels=8, exclude=fw.s2ft.Adapter.of_model(model, "a")))
    filled(model, ["a", "b"])
    model.add_weighted_adapter = model.base_model.add_weighted_adapter
    model.add_weighted_adapter(["a", "b"], [1.0, 1.0], "both")

    for layer in s2ft_layers(model).values():
        places = layer.s2ft_indices["both"].tolist()
        assert len(places) == 16
        for name in ("a", "b"):
            rows = [places.index(one) for one in layer.s2ft_indices[name].tolist()]
            assert torch.equal(layer.s2ft_delta["both"][rows], layer.s2ft_delta[name])


@pytest.mark.filterwarnings("ignore:The density")
@pytest.mark.parametrize("kind", ["ties", "dare_linear", "dare_ties", "magnitude_prune"])
def test_other_combinations_are_those_of_peft_on_the_union(kind):
    from peft.utils import merge_utils

    model = with_adapters("llama", a={}, b={"seed": 1})
    torch.manual_seed(0)
    fw.s2ft.fuse(model, ["a", "b"], [1.0, 0.5], name="both", combination_type=kind, density=1.0)

    layer = next(iter(s2ft_layers(model).values()))
    dense = [layer.get_delta_weight(name) for name in ("a", "b")]
    expected = getattr(merge_utils, kind)(dense, torch.tensor([1.0, 0.5]), 1.0)
    torch.testing.assert_close(layer.get_delta_weight("both"), expected)


def test_fused_adapter_is_saved_and_loaded(tmp_path):
    model = with_adapters("llama", a={}, b={"seed": 1})
    fw.s2ft.fuse(model, ["a", "b"], name="both")
    model.set_adapter("both")
    expected = logits(model)
    model.save_pretrained(tmp_path, selected_adapters=["both"])

    loaded = peft.PeftModel.from_pretrained(causal_model("llama"), tmp_path / "both").eval()

    assert torch.equal(logits(loaded), expected)
    for name in ("a", "b"):
        model.save_pretrained(tmp_path, selected_adapters=[name])
    files = {name: fw.s2ft.Adapter.load(tmp_path / name) for name in ("a", "b")}
    fused = fw.s2ft.fuse_adapters(files, [1.0, 1.0])
    for name, change in fused.modules.items():
        assert torch.equal(change.delta, s2ft_layers(model)[name].s2ft_delta["both"])


# ---- LoRA ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "architecture",
    ["llama", pytest.param("gpt2", marks=pytest.mark.slow), pytest.param("llama with biases", marks=pytest.mark.slow)],
)
def test_export_loads_in_stock_peft_without_featherweight(architecture, tmp_path):
    patterns = {"target_modules": ["mlp.c_proj", "c_attn"]} if architecture == "gpt2" else {}
    model = with_adapters(
        architecture,
        default={
            **patterns,
            "axis_pattern": {"down_proj|c_attn": "output"},
            "channel_pattern": {"o_proj": 3},
            "multiple_of": 1,
        },
    )
    expected = logits(model)
    fw.s2ft.export_lora(model, tmp_path / "lora")
    torch.save(expected, tmp_path / "expected.pt")
    program = (
        "import sys, torch, peft\n"
        f"sys.path.insert(0, {str(Path(__file__).parents[2] / 'reference')!r})\n"
        "from causal_models import causal_model, batch\n"
        f"model = peft.PeftModel.from_pretrained(causal_model({architecture!r}), {str(tmp_path / 'lora')!r}).eval()\n"
        f"expected = torch.load({str(tmp_path / 'expected.pt')!r})\n"
        "with torch.no_grad():\n"
        "    found = model(input_ids=batch()['input_ids']).logits\n"
        "torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)\n"
        "assert 'featherweight' not in sys.modules\n"
        "print(type(model.base_model).__name__)"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, timeout=120)

    assert done.stdout.split() == ["LoraModel"], done.stderr[-2000:]


def test_export_is_exact_and_a_bounded_rank_says_its_error(tmp_path):
    model = with_adapters("llama", torch.float64, default={"num_channels": 16})
    model.base_model.set_scale("default", 0.5)
    fw.s2ft.export_lora(model, tmp_path / "exact")
    report = fw.s2ft.export_lora(model, tmp_path / "bounded", max_rank=4)

    errors = []
    for folder in ("exact", "bounded"):
        lora = peft.PeftModel.from_pretrained(causal_model("llama", torch.float64), tmp_path / folder)
        for name, layer in s2ft_layers(model).items():
            dense = 0.5 * layer.get_delta_weight("default") / layer.s2ft_scaling["default"]
            found = lora.base_model.model.get_submodule(name).get_delta_weight("default")
            if folder == "exact":
                assert torch.equal(found, dense)
            else:
                errors.append(float((found - dense).norm() / dense.norm()))
    stated = report.section("Facts").facts["largest relative error"]
    assert max(errors) == pytest.approx(stated, rel=1e-4) and 0.1 < stated < 0.9


# ---- comparing checkpoints -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_diff_recovers_what_gives_the_tuned_weights_exactly(architecture, dtype, tmp_path):
    base = causal_model(architecture, dtype)
    model = with_adapters(architecture, dtype, default={})
    tuned = copy.deepcopy(model).merge_and_unload()

    adapter = fw.s2ft.diff(base, tuned)
    adapter.save(tmp_path)
    merged = peft.PeftModel.from_pretrained(causal_model(architecture, dtype), tmp_path).merge_and_unload()

    for name, layer in s2ft_layers(model).items():
        assert torch.equal(adapter.modules[name].indices, layer.s2ft_indices["default"])
    for key, tensor in tuned.state_dict().items():
        assert torch.equal(merged.state_dict()[key], tensor), key


def test_diff_refuses_what_is_no_sparse_change():
    base = causal_model("llama")
    changes = {
        "no linear weight": lambda m: m.model.norm.weight.data.add_(1),
        "sparse change": lambda m: m.model.layers[0].mlp.up_proj.weight.data.add_(1),
        "expected some": lambda m: None,
    }
    for message, change in changes.items():
        tuned = copy.deepcopy(base)
        change(tuned)
        with pytest.raises(CheckpointError, match=message):
            fw.s2ft.diff(base, tuned)


def test_import_official_recovers_indices_and_changes_from_permuted_weights():
    shape = {"num_key_value_heads": 4}
    base = causal_model("llama", torch.float64, **shape)
    tuned = copy.deepcopy(base)
    generator = torch.Generator().manual_seed(0)
    expected = {}
    for number, layer in enumerate(tuned.model.layers):
        heads, channels = torch.tensor([1 + number]), torch.tensor([3, 11, 40])
        o, down = layer.self_attn.o_proj.weight.data, layer.mlp.down_proj.weight.data
        for name, weight, indices in (
            ("self_attn.o_proj", o, (heads[:, None] * 8 + torch.arange(8)).flatten()),
            ("mlp.down_proj", down, channels),
        ):
            # Multiples of 1/64 of size below 1, added to such: no sum is rounded, so that "exactly" means exactly.
            delta = torch.randint(-60, 60, (len(indices), 32), generator=generator).double() / 64
            weight[:, indices] += delta.T
            expected[f"model.layers.{number}.{name}"] = (indices, delta)
        order = torch.tensor([*heads, *(h for h in range(4) if h not in heads)])
        rows = (order[:, None] * 8 + torch.arange(8)).flatten()
        for projection in ("q_proj", "k_proj", "v_proj"):
            weight = getattr(layer.self_attn, projection).weight
            weight.data = weight.data[rows]
        layer.self_attn.o_proj.weight.data = o[:, rows]
        order = torch.tensor([*channels, *(c for c in range(48) if c not in channels)])
        for projection in ("gate_proj", "up_proj"):
            getattr(layer.mlp, projection).weight.data = getattr(layer.mlp, projection).weight.data[order]
        layer.mlp.down_proj.weight.data = down[:, order]

    adapter = fw.s2ft.import_official(tuned.state_dict(), base)

    assert adapter.modules.keys() == expected.keys()
    for name, (indices, delta) in expected.items():
        assert adapter.modules[name].indices.tolist() == indices.tolist()
        torch.testing.assert_close(adapter.modules[name].delta, delta, rtol=0, atol=1e-15)
    with pytest.raises(CheckpointError, match="equal none of the base"):
        fw.s2ft.import_official(
            tuned.state_dict(),
            causal_model("llama", torch.float64, **shape, hidden_act="relu")
            .double()
            .apply(lambda m: torch.nn.init.ones_(m.weight) if isinstance(m, torch.nn.Linear) else None),
        )


# ---- mixed batches ---------------------------------------------------------------------------------------------------


def test_a_mixed_batch_equals_one_by_one():
    model = with_adapters("llama", torch.float64, a={}, b={"seed": 1, "axis_pattern": {"down_proj": "output"}})
    names = ["b", "__base__", "a", "a", "b"]
    ids = torch.randint(61, (5, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        mixed = model(input_ids=ids, adapter_names=names).logits
    with_grad = model(input_ids=ids, adapter_names=names).logits

    torch.testing.assert_close(with_grad, mixed, rtol=1e-12, atol=1e-12)
    for row, name in enumerate(names):
        if name == "__base__":
            with model.disable_adapter(), torch.no_grad():
                alone = model(input_ids=ids[row : row + 1]).logits
        else:
            model.set_adapter(name)
            with torch.no_grad():
                alone = model(input_ids=ids[row : row + 1]).logits
        # rows of a batch go through kernels of other shapes
        torch.testing.assert_close(mixed[row : row + 1], alone, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("beams", [1, 3])
def test_mixed_generation_with_a_cache_and_beams_equals_one_by_one(beams):
    model = with_adapters("llama", torch.float64, a={"num_channels": 16}, b={"seed": 1})
    filled(model, ["a", "b"], size=1.0)
    ids = torch.randint(2, 61, (3, 5), generator=torch.Generator().manual_seed(1))
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "num_beams": beams, "do_sample": False, "pad_token_id": 0}
    names = ["b", "a", "__base__"]

    mixed = model.generate(input_ids=ids, adapter_names=names, **options)

    for row, name in enumerate(names):
        alone = model.generate(input_ids=ids[row : row + 1], adapter_names=[name], **options)
        assert torch.equal(mixed[row : row + 1], alone)
    assert len({tuple(row[5:].tolist()) for row in mixed}) > 1


def test_mixed_batches_are_refused_where_they_would_be_wrong():
    model = with_adapters("llama", a={})
    ids = batch()["input_ids"]
    with pytest.raises(ValueError, match="Did you mean 'a'"):
        model(input_ids=ids, adapter_names=["a", "aa", "a"])
    with pytest.raises(ValueError, match="do not fit a batch of 3 rows"):
        model(input_ids=ids, adapter_names=["a"])
    with pytest.raises(ValueError, match="training mode"):
        model.train()(input_ids=ids, adapter_names=["a"] * 3)
    fw.s2ft.switch(model.eval(), "a")
    with pytest.raises(ValueError, match="are merged"):
        model(input_ids=ids, adapter_names=["a"] * 3)


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
