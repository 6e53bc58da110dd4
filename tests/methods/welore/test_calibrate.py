"""Second moments of what layers read, and what they are good for."""

import copy

import pytest
import torch
from causal_models import batch, causal_model, logits

import featherweight as fw
from featherweight.methods.welore import calibrate
from featherweight.methods.welore.plan import find_targets

SMALL = {"min_dim": 8}


@pytest.mark.parametrize("name", ["llama", "gpt2", "llama with biases", "smollm"])
@pytest.mark.parametrize("padded", [False, True])
def test_calibration_sees_what_the_layers_read(name, padded):
    model = causal_model(name, torch.float64)
    batches = [{"input_ids": batch(seed=seed)["input_ids"]} for seed in range(2)]
    if padded:
        mask = torch.ones_like(batches[0]["input_ids"])
        mask[1, -5:] = 0
        batches = [{**one, "attention_mask": mask} for one in batches]
    targets, _ = find_targets(model, fw.WeLore(**SMALL))
    expected = {}

    def hook(name):
        def add(module, args):
            rows = args[0][mask.bool()] if padded else args[0].flatten(0, 1)
            expected[name] = expected.get(name, 0) + rows.mT @ rows

        return add

    handles = [module.register_forward_pre_hook(hook(n)) for n, module in targets.items()]
    with torch.no_grad():
        for one in batches:
            model(**one)
    for handle in handles:
        handle.remove()

    blocks = calibrate.find_blocks(model, targets)
    with calibrate.in_eval_mode(model):
        stream = calibrate.start(model, blocks, batches)
        found = {}
        for index, block in enumerate(blocks.modules):
            names = calibrate.inner_names(blocks.names[index], blocks.targets[index])
            found |= calibrate.moments_of(block, index, stream, names)

    assert found.keys() == expected.keys() == targets.keys() and model.training
    for one in found:
        torch.testing.assert_close(found[one].second_NN, expected[one], rtol=1e-9, atol=1e-9)
    if name.startswith("llama"):
        parts = [found[f"model.layers.0.self_attn.{kind}_proj"] for kind in "qkv"]
        assert parts[0] is parts[1] is parts[2] is not found["model.layers.0.self_attn.o_proj"]


@pytest.mark.parametrize("name", ["llama", "llama with biases", "gpt2"])
def test_calibrated_methods_lose_less_on_the_calibration_data(name):
    model = causal_model(name, torch.float64).eval()
    data = [batch(rows=8, length=40, seed=seed)["input_ids"] for seed in range(2)]
    errors = {}
    for method in ("plain", "whitened", "refit"):
        changed = copy.deepcopy(model)
        fw.apply(changed, fw.WeLore(rank_reduction=0.5, method=method, allocation="uniform", **SMALL), data)
        errors[method] = float((logits(changed, input_ids=data[0]) - logits(model, input_ids=data[0])).norm())
    assert errors["whitened"] < 0.95 * errors["plain"]
    assert errors["refit"] < errors["whitened"]


def test_few_calibration_tokens_are_warned_about_and_none_fall_back_to_the_weights():
    model = causal_model("llama").eval()
    twin = copy.deepcopy(model)
    with pytest.warns(UserWarning, match="calibration has 4 tokens, fewer than the 48 inputs"):
        fw.apply(model, fw.WeLore(rank_reduction=0.5, method="whitened", **SMALL), [torch.ones(1, 4).long()])
    fw.apply(twin, fw.WeLore(rank_reduction=0.5, **SMALL))
    torch.testing.assert_close(logits(model), logits(twin))
