"""A real pretrained language model, end to end: loss falls, and the bytes are those that were promised."""

import json
from pathlib import Path

import pytest

import featherweight as fw

RECIPE = Path(__file__).parent.parent.parent / "examples" / "recipes" / "demo.yaml"


@pytest.mark.slow
def test_fine_tuning_smollm2_lowers_the_held_out_loss_and_the_state_has_the_promised_bytes(tmp_path):
    overrides = ["steps=8", "evaluate_every=null", "task.max_held_out_tokens=1024", "save_model=false"]
    fw.compare(RECIPE, ["adamw", "galore_8bit"], overrides=overrides, out=tmp_path, callbacks=[])
    summaries = {name: json.loads((tmp_path / name / "summary.json").read_text()) for name in ("adamw", "galore_8bit")}
    before = summaries["adamw"]["before_training"]["held_out_loss"]
    for summary in summaries.values():
        assert summary["held_out"]["held_out_loss"] < before - 0.02
        footprint = summary["footprint"]
        for category in ("weights", "gradients", "optimizer_state"):
            assert footprint["measured"][category] == footprint["predicted"][category]
    state = {name: summary["footprint"]["measured"]["optimizer_state"] for name, summary in summaries.items()}
    assert state["adamw"] == 134_515_008 * 2 * 4 + 8 * 272  # two float32 moments, one counter for each of 272 tensors
    assert state["galore_8bit"] <= 0.35 * state["adamw"]
