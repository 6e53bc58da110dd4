"""S2FT as a user of PEFT meets it: Trainer, TRL, checkpointing, quantised bases, modules_to_save, deletion."""

import copy

import peft
import pytest
import torch
from causal_models import batch, causal_model
from s2ft_models import adapted, filled

import featherweight as fw
from featherweight.methods.s2ft.layer import s2ft_layers


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


def test_merge_and_unload_gives_a_plain_model_that_is_saved_anywhere(tmp_path):
    from transformers import AutoModelForCausalLM

    model = filled(adapted(layout="channel_major")).eval()
    expected = model(**batch()).logits
    merged = model.merge_and_unload()
    merged.save_pretrained(tmp_path)

    assert not s2ft_layers(merged)
    found = AutoModelForCausalLM.from_pretrained(tmp_path).eval()(**batch()).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


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
