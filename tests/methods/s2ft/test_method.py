"""S2FT as a method of featherweight: apply, remove, recipes."""

import copy

import peft
import pytest
import torch
from causal_models import batch, causal_model

import featherweight as fw
from featherweight.errors import ConfigError
from featherweight.methods import parse_methods
from featherweight.methods.s2ft.layer import s2ft_layers
from featherweight.methods.s2ft.method import S2FT
from featherweight.training.loop import Loop
from featherweight.training.recipe import Recipe

SETTINGS = {
    "task": {"name": "text", "model": "tiny", "seq_len": 64, "max_train_tokens": 4000, "max_held_out_tokens": 500},
    "optimizer": {"name": "adamw", "lr": 1e-2},
    "steps": 4,
    "micro_batch_size": 2,
    "memory_steps": [],
    "save_model": True,
}


def recipe(**changes):
    return Recipe.parse({**SETTINGS, "methods": [{"s2ft": {"num_channels": 8}}], **changes})


def test_apply_and_remove_leave_the_model_as_it_was():
    model = causal_model("smollm")
    model.model.norm.weight.requires_grad_(False)
    before = {name: (tensor.clone(), tensor.requires_grad) for name, tensor in model.named_parameters()}
    structure = repr(model)

    report = fw.apply(model, S2FT(num_channels=8, update="inplace"))
    assert report.section("Facts").facts["trained parameters"] == 4 * 8 * 32
    for layer in s2ft_layers(model).values():
        layer.s2ft_delta["default"].data.fill_(1.0)
    model(**batch())
    with pytest.raises(ConfigError, match="is applied to this model already"):
        fw.apply(model, S2FT())
    other = copy.deepcopy(model)
    for one in (model, other):
        fw.remove(one, S2FT())
        assert repr(one) == structure and not hasattr(one, "peft_config")
        for name, tensor in one.named_parameters():
            assert torch.equal(tensor, before[name][0]) and tensor.requires_grad == before[name][1], name


def test_a_recipe_trains_the_change_alone_and_its_folder_opens_with_transformers_and_peft(tmp_path):
    from transformers import AutoModelForCausalLM

    run = fw.train(recipe(), out=tmp_path / "run", callbacks=[])
    merged = AutoModelForCausalLM.from_pretrained(run.folder / "model").eval()
    loop = Loop(recipe())
    base = loop.task.build_model()
    tuned = peft.PeftModel.from_pretrained(base, run.folder / "adapter").eval()

    ids = next(loop.task.batches("held_out", micro_batch_size=2, seed=0))["input_ids"]
    with torch.no_grad():
        torch.testing.assert_close(merged(ids).logits, tuned(ids).logits, rtol=1e-4, atol=1e-5)
    assert run.summary.held_out["held_out_loss"] < run.summary.before_training["held_out_loss"]
    assert run.summary.footprint.predicted["gradients"] == 4 * sum(
        p.numel() for p in loop.model.parameters() if p.requires_grad
    )


@pytest.mark.parametrize("update", ["delta", "inplace"])
def test_a_resumed_run_equals_the_uninterrupted_one_bit_by_bit(update, tmp_path):
    from featherweight.training.checkpoint import Checkpoints

    settings = recipe(methods=[{"s2ft": {"num_channels": 8, "update": update}}])
    straight = Loop(settings)
    for _ in range(4):
        straight.step()
    first = Loop(settings)
    for _ in range(2):
        first.step()
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(2, first.model, first.state_dict(), settings.to_dict())
    second = Loop(settings)
    second.resume(checkpoints.latest())
    for _ in range(2):
        second.step()

    one, other = straight.model.state_dict(), second.model.state_dict()
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    "changes",
    [
        {"activation_checkpointing": True},
        {"methods": ["mst", {"s2ft": {"num_channels": 8}}]},
        {"methods": [{"s2ft": {"num_channels": 8}}, "mst"]},
        {"accumulation_steps": 2, "micro_batch_size": 1},
        {"optimizer": {"name": "adamw", "lr": 1e-2, "layerwise": True}, "max_grad_norm": None},
    ],
)
def test_recipes_that_should_change_nothing_change_nothing(changes):
    expected = Loop(recipe(max_grad_norm=None))
    found = Loop(recipe(**{"max_grad_norm": None, **changes}))
    losses = [[loop.step()["loss"] for _ in range(3)] for loop in (expected, found)]

    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    trained = [p for p in found.model.parameters() if p.requires_grad]
    assert len(trained) == 2 * found.model.config.num_hidden_layers


@pytest.mark.parametrize("optimizer", ["adamw", "adamw_8bit"])
@pytest.mark.parametrize("precision", ["bf16", "bf16_autocast"])
def test_it_goes_with_other_optimizers_and_precisions(optimizer, precision):
    loop = Loop(recipe(optimizer={"name": optimizer, "lr": 1e-2}, precision=precision))
    before = loop.evaluate()["held_out_loss"]
    for _ in range(4):
        loop.step()

    assert loop.evaluate()["held_out_loss"] < before
    dtypes = {p.dtype for p in loop.model.parameters() if p.requires_grad}
    assert dtypes == {torch.float32}


def test_options_are_strict():
    assert parse_methods([{"s2ft": {"r_equivalent": 8}}])[0].peft_config().r_equivalent == 8
    with pytest.raises(ConfigError, match="Did you mean 'r_equivalent'"):
        parse_methods([{"s2ft": {"r_equivalnt": 8}}])
