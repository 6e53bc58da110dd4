"""Memory that a run predicts and measures."""

import pytest

from featherweight.training.loop import Loop


@pytest.mark.parametrize("optimizer", ["adamw", "galore", "galore_8bit"])
def test_measured_weights_gradients_and_state_equal_the_prediction_to_the_byte(recipe, optimizer):
    loop = Loop(recipe(task={"name": "regression", "hidden": 80}, optimizer=optimizer, memory_steps=[2, 3]))
    predicted = dict(loop.footprint.predicted)
    for _ in range(3):
        loop.step()
    measured = loop.footprint.measured
    assert {name: measured[name] for name in predicted} == predicted
    # 8*80+80 + 80*80+80 + 80+1 numbers of 4 bytes
    assert predicted["weights"] == predicted["gradients"] == 4 * 7281
    assert sum(loop.footprint.at_peak.values()) == loop.footprint.peak_bytes > sum(predicted.values())


@pytest.mark.parametrize("accumulation_steps", [1, 3])
def test_layerwise_gradients_take_the_predicted_bytes(recipe, accumulation_steps):
    optimizer = {"name": "galore", "rank": 4, "layerwise": True, "update_proj_gap": 1000}
    task = {"name": "regression", "hidden": 80}
    loop = Loop(recipe(task=task, optimizer=optimizer, memory_steps=[3, 4], accumulation_steps=accumulation_steps))
    for _ in range(4):
        loop.step()
    predicted, measured = loop.footprint.predicted["gradients"], loop.footprint.measured["gradients"]
    assert accumulation_steps > 1 or predicted == 4 * 80 * 80
    # A layer's bias may get its gradient in the same moment as its weight: 80 numbers of 4 bytes, not predicted.
    assert predicted <= measured <= predicted + 4 * 80
