"""Int8 weights in recipes, in checkpoints and in transformers.Trainer."""

import shutil

import pytest
import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM

import featherweight as fw
from featherweight.nn.int8_linear import Int8Embedding, Int8Linear
from featherweight.training import ReportCallback, trainer_optimizer
from featherweight.training.checkpoint import Checkpoints
from featherweight.training.interrupt import StopRequest
from featherweight.training.loop import Loop
from featherweight.training.recipe import Recipe

SETTINGS = {
    "task": {"name": "text", "model": "tiny", "seq_len": 32, "max_train_tokens": 4000, "max_held_out_tokens": 500},
    "optimizer": {"name": "galore_8bit", "lr": 3e-3, "rank": 8, "update_proj_gap": 4},
    "steps": 8,
    "micro_batch_size": 2,
    "accumulation_steps": 2,
    "checkpoint_every": 5,
    "memory_steps": [2],
    "methods": ["int8"],
}


def run(folder, checkpoint=None, **changes):
    loop = Loop(Recipe.parse({**SETTINGS, **changes}))
    if checkpoint is not None:
        loop.resume(checkpoint)
    loop.run([], Checkpoints(folder, keep=100), StopRequest())
    return loop


@pytest.mark.parametrize(
    ("precision", "is_layerwise", "methods"),
    [
        ("fp32", False, ["int8"]),
        ("bf16", True, [{"int8": {"embeddings": True}}]),
        pytest.param(
            "bf16_autocast", False, [{"int8": {"embeddings": True, "group_size": 64}}], marks=pytest.mark.slow
        ),
    ],
)
def test_a_run_resumes_bitwise_from_its_checkpoint_and_has_the_predicted_bytes(
    precision, is_layerwise, methods, tmp_path
):
    changes = {"precision": precision, "methods": methods}
    changes["optimizer"] = {**SETTINGS["optimizer"], "layerwise": is_layerwise}
    whole = run(tmp_path / "a", **changes)
    latest = Checkpoints(tmp_path / "a").latest()
    assert latest is not None and latest.step == 5
    resumed = run(tmp_path / "b", latest, **changes)
    assert resumed.progress.step == 8
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name
    for one, other in zip(whole.optimizer.state.values(), resumed.optimizer.state.values(), strict=True):
        assert all(torch.equal(value, other[key]) for key, value in one.items())
    for category in ("weights", "optimizer_state"):
        assert whole.footprint.measured[category] == whole.footprint.predicted[category]
    assert whole.evaluate()["held_out_loss"] == resumed.evaluate()["held_out_loss"]


# ---- transformers.Trainer

VOCABULARY = 64


def llama(seed=0):
    torch.manual_seed(seed)
    settings = {"hidden_size": 32, "intermediate_size": 72, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, tie_word_embeddings=True, **settings))


def rows(count):
    tokens = torch.randint(0, 4, (count, 12), generator=torch.Generator().manual_seed(0))
    return [{"input_ids": ids, "labels": ids} for ids in tokens]


def train(folder, is_layerwise, embeddings, seed=0, resume=None):
    model = llama(seed)
    fw.apply(model, fw.Int8(embeddings=embeddings))
    arguments = transformers.TrainingArguments(
        str(folder), per_device_train_batch_size=2, gradient_accumulation_steps=2, max_steps=6, learning_rate=1e-2,
        logging_steps=1, report_to=[], use_cpu=True, disable_tqdm=True, save_strategy="steps", save_steps=2, seed=3,
        dataloader_pin_memory=False,
    )  # fmt: skip
    options = {"rank": 8, "update_proj_gap": 4, "layerwise": is_layerwise}
    trainer = transformers.Trainer(
        model,
        arguments,
        train_dataset=rows(24),
        callbacks=[ReportCallback()],
        **trainer_optimizer("galore_8bit", model, **options),
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


@pytest.mark.parametrize(
    ("is_layerwise", "embeddings"), [pytest.param(False, False, marks=pytest.mark.slow), (True, True)]
)
def test_the_trainer_trains_saves_and_resumes_int8_weights_bitwise(is_layerwise, embeddings, tmp_path):
    whole = train(tmp_path / "a", is_layerwise, embeddings)
    losses = [line["loss"] for line in whole.state.log_history if "loss" in line]
    assert losses[-1] < losses[0]
    for step in (4, 6):
        shutil.rmtree(tmp_path / "a" / f"checkpoint-{step}")
    resumed = train(tmp_path / "a", is_layerwise, embeddings, seed=1, resume=True)
    assert isinstance(resumed.model.model.layers[0].mlp.up_proj, Int8Linear)
    assert isinstance(resumed.model.model.embed_tokens, Int8Embedding) == embeddings
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name
    assert losses[2:] == [line["loss"] for line in resumed.state.log_history if "loss" in line][2:]


@pytest.mark.parametrize("embeddings", [False, True])
def test_the_model_of_a_run_is_an_ordinary_checkpoint(embeddings, tmp_path):
    recipe = {**SETTINGS, "steps": 2, "methods": [{"int8": {"embeddings": embeddings}}], "save_model": True}
    folder = fw.train(Recipe.parse(recipe), out=tmp_path / "run")
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "run" / "model", output_loading_info=True
    )
    assert not any(info.values()) and folder is not None
    assert not any(name.endswith("codes") for name in model.state_dict())
    # The values are those that the codes stand for: whole numbers of codes, at most 127, in each group of a row.
    weight = model.model.layers[0].mlp.up_proj.weight.detach()
    assert weight.isfinite().all() and all(len(row.unique()) <= 255 for row in weight)
