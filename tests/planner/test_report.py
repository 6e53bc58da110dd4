"""What a plan and its reasons tell."""

import pytest

from featherweight.errors import ConfigError
from featherweight.planner import plan
from featherweight.training.recipe import load_recipe

ONLY_EXACT = ["bf16-weights", "8-bit-states", "low-rank", "int8-weights", "few-parameters"]


def test_where_nothing_fits_the_best_raises_and_the_report_says_so(tiny, tmp_path):
    nothing = plan(tiny, "100MB", device="cpu", seq_len=64, exclude=ONLY_EXACT)
    assert nothing.rows == [] and list(nothing.refused) == ["AdamW, float32 weights"]
    with pytest.raises(ConfigError, match=r"budget=95\.37 MiB holds no recipe \(AdamW, float32 weights needs"):
        _ = nothing.best
    assert nothing.to_dict()["verdict"] == "does not fit"
    nothing.report().save_html(tmp_path / "plan.html")
    assert "Nothing fits 95.37 MiB" in (tmp_path / "plan.html").read_text()


def test_the_report_holds_every_row_and_the_recipe_can_be_saved(tiny_plan, tmp_path):
    tiny_plan.report().save_html(tmp_path / "plan.html")
    page = (tmp_path / "plan.html").read_text()
    assert all(row.family in page for row in tiny_plan.rows) and "Assumptions" in page
    tiny_plan.save_recipe(tmp_path / "best.yaml")
    assert load_recipe(tmp_path / "best.yaml") == tiny_plan.best.recipe
