"""Checkpoints of any world size, here of one process; those of several stand in `test_fsdp2.py`."""

import json

import pytest
import torch
from shared_training import net, optimizer_for, train

import featherweight as fw
from featherweight.errors import CheckpointError, ConfigError

pytestmark = pytest.mark.slow
"""torch.distributed.checkpoint takes five seconds to import; what `fw train` writes is of another form."""


def test_a_run_goes_on_bitwise_from_its_checkpoint(tmp_path):
    model = net()
    optimizer = optimizer_for(model)
    train(model, optimizer, steps=4)
    fw.distributed.save(tmp_path / "step-4", model, optimizer)
    train(model, optimizer, steps=8, start=4)
    other = net()
    fresh = optimizer_for(other)
    fresh.param_groups[0]["lr"] = 5.0  # the option of the checkpoint counts
    fw.distributed.load(tmp_path / "step-4", other, fresh)
    train(other, fresh, steps=8, start=4)
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-4"]


def test_int8_weights_and_lazy_states_come_back(tmp_path):
    def build():
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(32, 64), torch.nn.Linear(64, 32))
        fw.apply(model, fw.Int8())
        return model, fw.optim.QGaLoreAdamW(fw.optim.param_groups(model, rank=4, min_numel=1), lr=1e-2)

    def step(model, optimizer, number):
        model(torch.randn(4, 32, generator=torch.Generator().manual_seed(number))).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    model, optimizer = build()
    for number in range(3):
        step(model, optimizer, number)
    fw.distributed.save(tmp_path / "one", model, optimizer)
    other, fresh = build()
    fw.distributed.load(tmp_path / "one", other, fresh)
    for each in ((model, optimizer), (other, fresh)):
        step(*each, 3)
    assert all(torch.equal(one, two) for one, two in zip(model.buffers(), other.buffers(), strict=True))


def test_a_checkpoint_replaces_an_older_one_of_its_name(tmp_path):
    model = net()
    for value in (1.0, 2.0):
        with torch.no_grad():
            model.up.bias.fill_(value)
        fw.distributed.save(tmp_path / "last", model)
    other = net()
    fw.distributed.load(tmp_path / "last", other)
    assert float(other.up.bias[0].detach()) == 2.0 and [path.name for path in tmp_path.iterdir()] == ["last"]


def test_what_does_not_fit_is_one_sentence(tmp_path):
    model = net()
    optimizer = optimizer_for(model)
    train(model, optimizer, steps=1)
    folder = fw.distributed.save(tmp_path / "one", model, optimizer)
    with pytest.raises(CheckpointError, match="has 'down.bias'"):
        fw.distributed.load(folder, torch.nn.ModuleDict({"embed": torch.nn.Embedding(20, 16)}).double())
    other = net()
    before = other.up.weight.detach().clone()
    with pytest.raises(CheckpointError, match="rank=4; expected rank=5"):
        groups = fw.optim.param_groups(other, ["up", "mid", "down"], min_numel=1, rank=5)
        fw.distributed.load(folder, other, fw.optim.GaLoreAdamW(groups, lr=1e-2))
    assert torch.equal(other.up.weight, before)
    with pytest.raises(ConfigError, match="optimizer=AdamW is none of fw.optim"):
        fw.distributed.save(tmp_path / "two", model, torch.optim.AdamW(model.parameters()))
    with pytest.raises(CheckpointError, match="holds no complete checkpoint"):
        fw.distributed.load(tmp_path / "nowhere", model)
    (folder / "manifest.json").write_text(json.dumps({"format_version": 9}))
    with pytest.raises(CheckpointError, match="format_version=9"):
        fw.distributed.load(folder, model)
    (folder / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match="holds no complete checkpoint"):
        fw.distributed.load(folder, model)


def test_the_middle_of_a_layer_wise_step_is_refused(tmp_path):
    model = net()
    optimizer = optimizer_for(model)
    with fw.optim.layerwise(model, optimizer, accumulation_steps=2) as handle:
        model(torch.arange(3)).square().sum().backward()
        with pytest.raises(ConfigError, match="in the middle of a layer-wise step"):
            fw.distributed.save(tmp_path / "one", model, optimizer)
        handle.discard()
