"""Embedding and head that wait on the host: the training of weights that stay, with one of the two there at a time."""

import copy

import pytest
import torch
from tiny_models import SETTINGS, new_model

import featherweight as fw
from featherweight.nn.host_tensors import HostTensors
from featherweight.nn.weight_slots import WeightSlots
from featherweight.optim import AdamW, QGaLoreAdamW, layerwise, param_groups
from featherweight.training import LayerMajor


@pytest.fixture
def built(monkeypatch):
    """Return a function that gives a fresh model in training mode; what has left its place is filled with NaN."""
    monkeypatch.setattr(WeightSlots, "poison", True)
    monkeypatch.setattr(HostTensors, "poison", True)

    def build(name="llama", **options):
        given = {"model_type": name, **SETTINGS.get(name, {}), "initializer_range": 0.05, **options}
        return new_model(given).train()

    return build


def batch(seed=0):
    ids = torch.randint(1, 64, (2, 17), generator=torch.Generator().manual_seed(seed))
    return {"input_ids": ids, "labels": ids}


def adamw(model):
    return AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)


def int8(model):
    fw.apply(model, fw.Int8(embeddings=True))
    fw.apply(model, fw.MsT(chunk_size=4, head_chunk_size=4))
    return QGaLoreAdamW(param_groups(model, rank=6, update_proj_gap=3), lr=1e-2)


def lora(model):
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    fw.apply(model, fw.LoRA(r=4))
    return adamw(model)


CASES = {
    "tied": ({"tie_word_embeddings": True}, adamw),
    "untied": ({"tie_word_embeddings": False}, adamw),
    "int8": ({"tie_word_embeddings": False}, int8),
    "adapters": ({"tie_word_embeddings": False}, lora),
    "scaled": ({"name": "gemma2"}, adamw),
    "positions": ({"name": "gpt2", "attn_pdrop": 0.0, "resid_pdrop": 0.1, "embd_pdrop": 0.1}, adamw),
}


@pytest.mark.parametrize("case", CASES)
def test_training_is_bit_by_bit_that_of_weights_on_the_device(built, case):
    # Mutations: a head that is not written back, an embedding that is read in the head's phase or too late.
    options, optimizer_of = CASES[case]
    base, results = built(**options), {}
    for place in ("device", "host"):
        model = copy.deepcopy(base)
        torch.manual_seed(0)
        optimizer = optimizer_of(model)
        with layerwise(model, optimizer, max_grad_norm=1.0) as handle:
            stream = LayerMajor(model, handle, chunk_tokens=7, weights=place, states=place)
            losses = [float(stream.step(batch(seed))) for seed in range(3)]
            results[place] = losses, handle.grad_norm, {n: one.clone() for n, one in model.state_dict().items()}
    assert results["host"][:2] == results["device"][:2]
    for name, weight in results["device"][2].items():
        assert torch.equal(results["host"][2][name], weight), name
        assert weight.isfinite().all() if weight.is_floating_point() else True


@pytest.mark.parametrize("case", ["tied", "untied", "adapters"])
def test_each_is_there_for_its_phase_and_bytes_follow_the_formula(built, case):
    model, calls, places = built(**CASES[case][0]), [], set()
    optimizer = CASES[case][1](model)
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    embedding.register_forward_hook(lambda *_: calls.append(1))
    with layerwise(model, optimizer) as handle:

        def look(progress):
            phase = progress.words.partition(",")[0]
            places.add((phase, found.waiting.holds(embedding.weight), found.waiting.holds(head.weight)))

        stream = LayerMajor(model, handle, chunk_tokens=7, weights="host", progress=look)
        found = stream.layer_weights.vocabulary
        for _ in range(2):
            stream.step(batch())
        assert not found.waiting.holds(embedding.weight) and not found.waiting.holds(head.weight)
    tied = case == "tied"
    assert places == {("forward", True, True), ("head", not tied, False), ("backward", True, True)}
    assert len(calls) == 2 * 2 * (1 if case == "adapters" else 2)  # rows, steps; nothing is embedded for the loss
    assert found.traffic_bytes() == (found.waiting.read_bytes // 2, found.waiting.written_bytes // 2)
    size = embedding.weight.nbytes
    assert found.traffic_bytes()[1] == {"tied": size, "untied": 3 * size, "adapters": 2 * size}[case]
    assert found.host_bytes == (size if tied else 2 * size)


def test_an_exception_brings_both_back(built):
    model = built(tie_word_embeddings=False)
    before = copy.deepcopy(model.state_dict())
    with layerwise(model, adamw(model)) as handle:
        stream = LayerMajor(model, handle, chunk_tokens=7, weights="host", states="host")

        def refuse(loss):
            raise ValueError("not this one")

        with pytest.raises(ValueError, match="not this one"):
            stream.step(batch(), judge=refuse)
        assert all(torch.equal(one, before[name]) for name, one in model.state_dict().items())
        assert not stream.layer_weights.vocabulary.waiting.holds(model.lm_head.weight)
        with torch.no_grad():
            model.lm_head.weight.zero_()  # what is written between steps counts
        assert float(stream.step(batch())) == pytest.approx(torch.tensor(64.0).log().item(), rel=1e-6)
