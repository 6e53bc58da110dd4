"""A run is held to what was predicted for it."""

import pytest

from featherweight.errors import DeviceError
from featherweight.training.estimate import estimate_memory
from featherweight.training.events import Callback
from featherweight.training.plan_check import PlanCheck
from featherweight.training.recipe import Recipe
from featherweight.training.run import train


class Inflated(Callback):
    """Pretends that a step took more memory than it did, before the check looks."""

    def __init__(self, times):
        self.times = times

    def on_step(self, event):
        if event.step == 2:
            footprint = event.footprint
            footprint.peak_bytes = int(footprint.peak_bytes * self.times)
            footprint.at_peak = {name: int(count * self.times) for name, count in footprint.at_peak.items()}


@pytest.fixture
def small():
    task = {"name": "text", "model": "tiny", "corpus": "english", "seq_len": 32, "max_held_out_tokens": 64}
    options = {"optimizer": "adamw", "steps": 3, "micro_batch_size": 2, "memory_steps": [2]}
    return Recipe.parse({"task": task, **options}, where="recipe")


def test_a_run_as_predicted_goes_on_and_its_report_has_the_prediction(small, tmp_path):
    estimate = estimate_memory(None, small, device="cpu")
    run = train(small, out=tmp_path / "run", callbacks=[PlanCheck(estimate)])
    assert run.summary.footprint.predicted_peak_bytes == estimate.timeline.peak(2).size_bytes
    assert run.summary.footprint.predicted["activations"] > 0


def test_a_peak_more_than_a_tenth_above_stops_after_the_second_step_and_names_what_grew(small, tmp_path):
    check = PlanCheck(estimate_memory(None, small, device="cpu"))
    with pytest.raises(DeviceError, match="after step 2 is more than 10% above .* More than planned: .*weights"):
        train(small, out=tmp_path / "run", callbacks=[Inflated(1.5), check])
