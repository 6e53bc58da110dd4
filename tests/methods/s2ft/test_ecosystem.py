"""S2FT as a user of PEFT meets it: Trainer, TRL, checkpointing, quantised bases, modules_to_save, deletion."""

import copy

import peft
import pytest
import torch
from causal_models import batch, causal_model
from torch import nn

import featherweight as fw
from featherweight.errors import ConfigError
from featherweight.methods.s2ft.layer import s2ft_layers


def adapted(base=None, **options):
    base = causal_model("llama") if base is None else base
    return peft.get_peft_model(base, fw.S2FTConfig(**{"num_channels": 8, **options}))


def filled(model, size=0.1):
    generator = torch.Generator().manual_seed(0)
    for layer in s2ft_layers(model).values():
        for name in sorted(layer.s2ft_delta):
            delta = layer.s2ft_delta[name]
            delta.data.copy_(torch.randn(delta.shape, generator=generator) * size)
    return model


def rows(count=8):
    ids = batch(rows=count)["input_ids"]
    return [{"input_ids": row, "labels": row.clone()} for row in ids]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("update", ["delta", "inplace"])
def test_trainer_saves_resumes_and_loads(update, tmp_path):
    from transformers import Trainer, TrainingArguments

    def trainer(steps):
        arguments = TrainingArguments(
            output_dir=str(tmp_path),
            max_steps=steps,
            save_steps=2,
            per_device_train_batch_size=2,
            learning_rate=1e-2,
            use_cpu=True,
            report_to=[],
            logging_steps=1,
            gradient_checkpointing=True,
            gradient_accumulation_steps=2,
            gradient_checkpointing_kwargs={"use_reentrant": False},
            lr_scheduler_type="constant",
            data_seed=0,
        )
        return Trainer(model=adapted(update=update), args=arguments, train_dataset=rows())

    straight = trainer(4)
    straight.train()
    resumed = trainer(4)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))

    losses = [entry["loss"] for entry in straight.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0]
    for one, other in zip(*(s2ft_layers(t.model).values() for t in (straight, resumed)), strict=True):
        assert torch.equal(one.s2ft_delta["default"], other.s2ft_delta["default"])
        assert one.s2ft_delta["default"].abs().sum() > 0


@pytest.mark.filterwarnings("ignore")
def test_trl_sft_trains_with_the_configuration_alone(tmp_path):
    trl = pytest.importorskip("trl")
    from datasets import Dataset

    from featherweight.models import load_model, load_tokenizer

    data = Dataset.from_list([{"prompt": "two and two", "completion": " is four"}] * 8)
    arguments = trl.SFTConfig(
        output_dir=str(tmp_path),
        max_steps=3,
        per_device_train_batch_size=2,
        learning_rate=1e-2,
        use_cpu=True,
        report_to=[],
        logging_steps=1,
        bf16=False,
        max_length=64,
    )
    trainer = trl.SFTTrainer(
        model=load_model("tiny"),
        args=arguments,
        train_dataset=data,
        processing_class=load_tokenizer("tiny"),
        peft_config=fw.S2FTConfig(num_channels=8, task_type="CAUSAL_LM"),
    )
    trainer.train()

    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0]
    trainer.save_model(str(tmp_path / "adapter"))
    loaded = peft.PeftModel.from_pretrained(load_model("tiny"), tmp_path / "adapter")
    first = next(iter(s2ft_layers(loaded).values())).s2ft_delta["default"]
    assert torch.equal(first, next(iter(s2ft_layers(trainer.model).values())).s2ft_delta["default"].detach())


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("update", ["delta", "inplace"])
def test_activation_checkpointing_gives_the_same_gradients(reentrant, update):
    plain, checkpointed = (adapted(update=update) for _ in range(2))
    checkpointed.base_model.model.activation_checkpointing_enable({"use_reentrant": reentrant})
    if reentrant:
        checkpointed.enable_input_require_grads()
    for model in (plain, checkpointed):
        filled(model).train()(**batch(), use_cache=False).loss.backward()

    for one, other in zip(*(s2ft_layers(model).values() for model in (plain, checkpointed)), strict=True):
        torch.testing.assert_close(one.s2ft_delta["default"].grad, other.s2ft_delta["default"].grad)


def test_modules_to_save_and_bias_are_saved_with_the_adapter_and_exported(tmp_path):
    base = causal_model("llama with biases")
    model = filled(adapted(copy.deepcopy(base), modules_to_save=["norm"], bias="s2ft_only"))
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and "s2ft_delta" not in name:
            parameter.data += 0.1
    expected = model.eval()(**batch()).logits
    assert any(name.endswith("bias") for name, p in model.named_parameters() if p.requires_grad)
    model.save_pretrained(tmp_path / "s2ft")
    fw.s2ft.export_lora(model, tmp_path / "lora")

    for folder in ("s2ft", "lora"):
        loaded = peft.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / folder).eval()
        torch.testing.assert_close(loaded(**batch()).logits, expected, rtol=1e-4, atol=1e-5)


def test_adapters_are_deleted_and_set_as_peft_users_know_it():
    model = filled(adapted())
    plain = causal_model("llama").eval()(**batch()).logits
    model.add_adapter("second", fw.S2FTConfig(num_channels=8, seed=1, update="inplace"))
    filled(model)
    model.set_adapter("second")
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained and all(".second" in name for name in trained)
    second = model.eval()(**batch()).logits
    model.set_adapter("default")
    first = model(**batch()).logits
    assert not torch.allclose(first, second)
    model.delete_adapter("second")
    assert torch.equal(model(**batch()).logits, first)
    with model.disable_adapter():
        assert torch.equal(model(**batch()).logits, plain)
    assert "second" not in str(model.state_dict().keys())


def test_an_adapter_is_added_beside_merged_ones_as_if_they_were_not():
    alone = adapted()
    alone.add_adapter("second", fw.S2FTConfig(num_channels=8, selection="weight"))
    model = filled(adapted(), size=10.0)
    model.merge_adapter()
    with pytest.warns(UserWarning, match="Unmerging the model first"):  # PEFT's own way
        model.add_adapter("second", fw.S2FTConfig(num_channels=8, selection="weight"))

    for one, other in zip(*(s2ft_layers(m).values() for m in (model, alone)), strict=True):
        assert torch.equal(one.s2ft_indices["second"], other.s2ft_indices["second"])
    assert model.peft_config["second"].base_fingerprint == alone.peft_config["second"].base_fingerprint


def test_an_encoder_decoder_mixes_adapters_and_beams():
    from transformers import AutoConfig, AutoModelForSeq2SeqLM

    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "vocab_size": 61}
    base = AutoModelForSeq2SeqLM.from_config(AutoConfig.for_model("t5", **sizes, decoder_start_token_id=0)).double()
    model = adapted(base, num_channels=16)
    model.add_adapter("second", fw.S2FTConfig(num_channels=16, seed=1))
    filled(model, size=2.0).eval()
    ids = torch.randint(2, 61, (3, 5), generator=torch.Generator().manual_seed(0))
    names, options = ["second", "default", "__base__"], {"max_new_tokens": 4, "min_new_tokens": 4, "num_beams": 2}

    mixed = model.generate(input_ids=ids, adapter_names=names, **options)

    for row, name in enumerate(names):
        alone = model.generate(input_ids=ids[row : row + 1], adapter_names=[name], **options)
        assert torch.equal(mixed[row : row + 1], alone)


def test_merge_and_unload_gives_a_plain_model_that_is_saved_anywhere(tmp_path):
    from transformers import AutoModelForCausalLM

    model = filled(adapted(layout="channel_major")).eval()
    expected = model(**batch()).logits
    merged = model.merge_and_unload()
    merged.save_pretrained(tmp_path)

    assert not s2ft_layers(merged)
    found = AutoModelForCausalLM.from_pretrained(tmp_path).eval()(**batch()).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_all_linear_trains_input_channels_of_every_layer_and_is_read_back(tmp_path):
    model = filled(adapted(target_modules="all-linear"))
    layers = s2ft_layers(model)
    assert len(layers) == 14 and {layer.s2ft_axis["default"] for layer in layers.values()} == {"input"}
    expected = model.eval()(**batch()).logits
    model.save_pretrained(tmp_path)

    loaded = peft.PeftModel.from_pretrained(causal_model("llama"), tmp_path).eval()

    assert torch.equal(loaded(**batch()).logits, expected)


def test_a_regular_expression_and_exclusion_select_modules():
    model = adapted(target_modules=r".*\.0\.(mlp\.down_proj|self_attn\.o_proj)", exclude_modules=["o_proj"])
    assert list(s2ft_layers(model)) == ["model.layers.0.mlp.down_proj"]


def test_another_methods_layers_are_refused():
    base = causal_model("llama")
    peft.LoraModel(base, {"lora": peft.LoraConfig(target_modules=["o_proj"])}, "lora")
    with pytest.raises((ConfigError, UserWarning)):
        adapted(base)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("bits", [4, 8])
def test_a_bitsandbytes_base_trains_merges_and_comes_back(bits, tmp_path):
    bnb = pytest.importorskip("bitsandbytes", exc_type=ImportError)
    # In evaluation mode bitsandbytes goes over to other CPU kernels and back; there is no dropout here.
    base = causal_model("llama", hidden_size=64, intermediate_size=128).train()
    for name, module in list(base.named_modules()):
        if isinstance(module, nn.Linear) and name != "lm_head":
            if bits == 4:
                new = bnb.nn.Linear4bit(module.in_features, module.out_features, bias=False, quant_type="nf4")
                new.weight = bnb.nn.Params4bit(module.weight.data, requires_grad=False, quant_type="nf4")
            else:
                new = bnb.nn.Linear8bitLt(module.in_features, module.out_features, bias=False, has_fp16_weights=False)
                new.weight = bnb.nn.Int8Params(module.weight.data, requires_grad=False, has_fp16_weights=False)
            parent, _, last = name.rpartition(".")
            setattr(base.get_submodule(parent), last, new)
    base.to("cpu")
    base.requires_grad_(False).enable_input_require_grads()  # the path through its kernels with gradients
    plain = base(**batch()).logits.detach()
    model = adapted(base)
    torch.testing.assert_close(model(**batch()).logits, plain)
    model(**batch()).loss.backward()
    gradients = [layer.s2ft_delta["default"].grad for layer in s2ft_layers(model).values()]
    assert all(one.dtype == torch.float32 and one.abs().sum() > 0 for one in gradients)
    filled(model)
    changed = model(**batch()).logits.detach()

    model.merge_adapter()
    merged = model(**batch()).logits.detach()
    model.unmerge_adapter()
    again = model(**batch()).logits.detach()

    assert torch.equal(again, changed)
    with model.disable_adapter():
        assert torch.equal(model(**batch()).logits, plain)
    # Rounded once more to 4 or 8 bits: near, and nearer than the base without the change.
    assert (merged - changed).norm() < (plain - changed).norm()
    with pytest.raises(ConfigError, match="update='inplace' does not go with quantized"):
        model.add_adapter("inplace", fw.S2FTConfig(num_channels=8, update="inplace"))


@pytest.mark.parametrize("length", [1, 7])
def test_odd_shapes_and_empty_batches(length):
    model = filled(adapted(target_modules=["o_proj", "down_proj", "up_proj"]))
    ids = torch.zeros(2, length, dtype=torch.int64)
    model(input_ids=ids).logits.sum().backward()
    layer = next(iter(s2ft_layers(model).values()))
    empty = torch.randn(0, 5, layer.in_features, requires_grad=True)
    out = layer(empty)
    out.sum().backward()
    assert out.shape == (0, 5, layer.out_features) and empty.grad.shape == empty.shape


def test_nan_in_the_input_of_unselected_channels_reaches_no_gradient_of_the_change():
    model = adapted()
    layer = s2ft_layers(model)["model.layers.0.mlp.down_proj"]
    chosen = layer.s2ft_indices["default"].tolist()
    x = torch.randn(3, 48)
    x[0, next(i for i in range(48) if i not in chosen)] = torch.nan
    layer(x)[1:].sum().backward()
    assert torch.isfinite(layer.s2ft_delta["default"].grad).all()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torch_compile_needs_no_graph_break():
    model = filled(adapted()).train()
    layer = s2ft_layers(model)["model.layers.0.mlp.down_proj"]
    x = torch.randn(4, 48, requires_grad=True)
    expected = layer(x)
    found = torch.compile(layer, fullgraph=True, backend="aot_eager")(x)
    torch.testing.assert_close(found, expected)
    found.sum().backward()
    assert layer.s2ft_delta["default"].grad is not None
