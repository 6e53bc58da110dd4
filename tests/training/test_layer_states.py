"""States that wait on the host: what is trained, copied, kept and refused."""

import copy

import pytest
import torch
from causal_models import causal_model

import featherweight as fw
from featherweight.errors import ConfigError
from featherweight.nn.host_tensors import HostTensors
from featherweight.optim import AdamW, GaLoreAdamW, QGaLoreAdamW, layerwise, param_groups
from featherweight.training import LayerMajor


@pytest.fixture(autouse=True)
def poisoned(monkeypatch):
    """Fill what a state leaves on the device with NaN."""
    monkeypatch.setattr(HostTensors, "poison", True)


def tokens(seed):
    return torch.randint(1, 60, (2, 17), generator=torch.Generator().manual_seed(seed))


def optimizer_of(model, case):
    if case == "adamw":
        return AdamW(model.parameters(), lr=1e-2)
    if case == "q-galore, cores":
        fw.apply(model, fw.Int8())
        fw.apply(model, fw.CoreGradient(prefer="memory"))
        return QGaLoreAdamW(param_groups(model, rank=6, update_proj_gap=3), lr=1e-2)
    bits = {"state_bits": 8} if "8" in case else {}
    return GaLoreAdamW(param_groups(model, rank=6, update_proj_gap=3), lr=1e-2, **bits)


def trained(case, states, steps=5, weights="device"):
    torch.manual_seed(0)
    model = causal_model("llama")
    optimizer = optimizer_of(model, case)
    with layerwise(model, optimizer, max_grad_norm=1.0) as handle:
        stream = LayerMajor(model, handle, chunk_tokens=8, states=states, weights=weights)
        for step in range(steps):
            stream.step({"input_ids": tokens(step), "labels": tokens(step)})
        return model, optimizer, stream


@pytest.mark.parametrize("case", ["adamw", "galore 8-bit", "q-galore, cores"])
def test_training_and_states_are_bit_by_bit_those_of_the_device(case):
    # Mutations: a state that is read after its turn or does not come back, a basis that two weights share.
    (kept, states, _), (hosted, hosted_states, stream) = (trained(case, place) for place in ("device", "host"))
    for name, weight in kept.state_dict().items():
        assert torch.equal(weight, hosted.state_dict()[name]), name
    found = hosted_states.state_dict()["state"]
    for index, state in states.state_dict()["state"].items():
        assert all(torch.equal(value, found[index][key]) for key, value in state.items())
    waiting = stream.layer_states.waiting
    assert waiting.written_bytes > waiting.read_bytes > 0  # the first step has made them


def test_bytes_are_those_of_the_formula_and_go_in_and_out_once_a_step():
    _, _, stream = trained("adamw", "host", steps=3, weights="host")
    states = stream.layer_states
    counters = 8 * sum(len(each) for each in states.parameters)
    assert states.host_bytes - counters == 8 * sum(p.numel() for each in states.parameters for p in each)
    assert states.waiting.written_bytes == 3 * (states.host_bytes - counters)
    assert states.waiting.read_bytes == 2 * (states.host_bytes - counters)


def test_a_checkpoint_between_steps_goes_on_with_the_same_bits():
    straight, _, _ = trained("galore 8-bit", "host", steps=4)
    model, optimizer, _ = trained("galore 8-bit", "host", steps=2)
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    model = causal_model("llama")
    model.load_state_dict(saved[0])
    optimizer = optimizer_of(model, "galore 8-bit")
    optimizer.load_state_dict(saved[1])
    with layerwise(model, optimizer, max_grad_norm=1.0) as handle:
        stream = LayerMajor(model, handle, chunk_tokens=8, states="host")
        for step in (2, 3):
            stream.step({"input_ids": tokens(step), "labels": tokens(step)})
    assert all(torch.equal(one, model.state_dict()[name]) for name, one in straight.state_dict().items())


def test_states_that_no_turn_would_reach_are_refused():
    model = causal_model("llama")
    with pytest.raises(ConfigError, match="states='host' without layer-wise updates; expected updates in the turn"):
        LayerMajor(model, states="host")
    with layerwise(model, AdamW(model.parameters()), max_grad_norm=1.0, clip="projected") as handle:
        with pytest.raises(ConfigError, match="states='host' beside clip='projected'"):
            LayerMajor(model, handle, states="host")
