"""Weights on the host in loops of one's own: bit by bit the training of weights on the device."""

import copy

import pytest
import torch
from tiny_models import tiny_model

import featherweight as fw
from featherweight.errors import ConfigError
from featherweight.nn.weight_slots import WeightSlots
from featherweight.optim import AdamW, GaLoreAdamW, QGaLoreAdamW, layerwise, param_groups
from featherweight.training import LayerMajor


@pytest.fixture
def model():
    return copy.deepcopy(tiny_model("llama")).float().train()


def tokens(seed=0):
    return torch.randint(1, 60, (2, 17), generator=torch.Generator().manual_seed(seed))


def trained(model, case, is_hosted, steps=3):
    model = copy.deepcopy(model)
    if case == "q-galore, cores":
        fw.apply(model, fw.Int8())
        fw.apply(model, fw.CoreGradient(prefer="memory"))
    if case == "bf16":
        model.bfloat16()
    if case == "checkpointed":
        model.activation_checkpointing_enable({"use_reentrant": False})
    if is_hosted:
        fw.apply(model, fw.HostWeights(slots=2))
    kind = QGaLoreAdamW if case == "q-galore, cores" else GaLoreAdamW
    groups = param_groups(model, rank=6, update_proj_gap=3)
    optimizer = AdamW(model.parameters(), lr=1e-2) if case == "adamw" else kind(groups, lr=1e-2)
    losses = []
    with layerwise(model, optimizer, max_grad_norm=1.0) as handle:
        for step in range(steps):
            loss = model(input_ids=tokens(step), labels=tokens(step), use_cache=False).loss
            loss.backward()
            losses += [float(loss.detach()), handle.grad_norm]
    return losses, {name: one.clone() for name, one in model.state_dict().items()}, model


@pytest.mark.parametrize(
    "case",
    ["adamw", "q-galore, cores", *(pytest.param(one, marks=pytest.mark.slow) for one in ("bf16", "checkpointed"))],
)
def test_training_is_bit_by_bit_that_of_weights_on_the_device(model, case, monkeypatch):
    # Mutation: a slot that is read after its turn, a layer that is released before its update.
    monkeypatch.setattr(WeightSlots, "poison", True)
    (losses, weights, _), (hosted_losses, hosted, _) = (trained(model, case, is_hosted) for is_hosted in (False, True))
    assert hosted_losses == losses
    for name, weight in weights.items():
        assert torch.equal(hosted[name], weight), name


def test_copies_generation_and_the_way_back(model):
    expected = model.generate(tokens()[:1], max_new_tokens=4, do_sample=False)
    fw.apply(model, fw.HostWeights())
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin.model.layers[0].mlp.up_proj.weight.add_(1)  # a copy has weights of its own
        twin(input_ids=tokens())
    assert torch.equal(model.generate(tokens()[:1], max_new_tokens=4, do_sample=False), expected)
    fw.remove(model, fw.HostWeights())
    assert torch.equal(model.generate(tokens()[:1], max_new_tokens=4, do_sample=False), expected)


def test_a_backward_pass_that_breaks_off_leaves_all_weights_usable(model):
    fw.apply(model, fw.HostWeights())
    with layerwise(model, AdamW(model.parameters(), lr=1e-3)) as handle:
        hook = model.model.layers[1].mlp.down_proj.weight.register_hook(lambda grad: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            model(input_ids=tokens(), labels=tokens()).loss.backward()
        hook.remove()
        model(input_ids=tokens(), labels=tokens()).loss.backward()
        assert handle.steps == 1
    assert all(p.isfinite().all() for p in model.parameters())


def test_what_could_not_be_updated_is_refused(model):
    fw.apply(model, fw.HostWeights())
    with pytest.raises(ConfigError, match="called for training without layer-wise updates; expected updates while"):
        model(input_ids=tokens(), labels=tokens())
    with pytest.raises(ConfigError, match="has fw.HostWeights, which brings each layer for each call"):
        LayerMajor(model)
    with pytest.raises(ConfigError, match="has no decoder layers"):
        fw.apply(torch.nn.Linear(2, 2), fw.HostWeights())
