"""The bytes of a real model's training step, category by category, are those of the formulas."""

import pytest
import torch

import featherweight as fw
from featherweight.models import load_model
from featherweight.optim import AdamW, GaLoreAdamW, QGaLoreAdamW, layerwise, param_groups
from featherweight.training.footprint import predict_bytes

RECIPES = {
    "AdamW": (AdamW, {"state_bits": 16}, (), False),
    "GaLore 8-bit": (GaLoreAdamW, {"rank": 144, "state_bits": 8}, (), True),
    "Q-GaLore": (QGaLoreAdamW, {"rank": 144}, (fw.Int8(),), True),
    "Q-GaLore, core gradients": (QGaLoreAdamW, {"rank": 144}, (fw.Int8(), fw.CoreGradient()), True),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_measured_bytes_of_smollm2_are_the_predicted_ones(name):
    kind, options, methods, is_layerwise = RECIPES[name]
    model = load_model("smollm2").to(torch.bfloat16).train()
    for method in methods:
        fw.apply(model, method)
    groups = model.named_parameters() if kind is AdamW else param_groups(model)
    optimizer = kind(groups, lr=1e-5, **options)
    if is_layerwise:
        layerwise(model, optimizer)
    tokens = torch.randint(0, 49152, (1, 64), generator=torch.Generator().manual_seed(0))
    for measured in (False, True):
        with fw.measure_memory(model, optimizer) as memory:
            model(tokens, labels=tokens, use_cache=False).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        if measured:
            predicted = predict_bytes(model, optimizer)
            found = memory.max_by_category
            assert found["weights"] == predicted["weights"]
            assert found["optimizer_state"] == predicted["optimizer_state"]
            assert found["gradients"] == predicted["gradients"]
            if "core" in name:  # nothing but the tied embedding's, the largest that is left
                assert found["gradients"] == 2 * 49152 * 576
