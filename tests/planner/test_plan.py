import json
import subprocess
import sys

import pytest

from featherweight.errors import ConfigError
from featherweight.planner import plan
from featherweight.training.dry_run import measure
from featherweight.training.recipe import load_recipe

ONLY_EXACT = ["bf16-weights", "8-bit-states", "low-rank", "int8-weights", "few-parameters"]


def test_every_row_was_simulated_and_fits(tiny_plan):
    assert len(tiny_plan.rows) >= 5
    for row in tiny_plan.rows:
        assert row.estimate.recipe == row.recipe
        assert row.need.allocated_bytes == row.estimate.peak_bytes
        assert row.need.total_bytes <= tiny_plan.target.usable_bytes and row.tokens_per_s > 0


def test_excluded_tags_are_absent_and_the_best_row_gives_up_nothing(tiny_plan):
    assert not {"low-rank", "int8-weights"} & {tag for row in tiny_plan.rows for tag in row.tags}
    assert tiny_plan.best is tiny_plan.rows[0] and tiny_plan.best.tags == ()
    assert tiny_plan.fastest.tokens_per_s == max(row.tokens_per_s for row in tiny_plan.rows)


def test_tokens_of_a_step_are_kept_by_accumulation(tiny_plan):
    for row in tiny_plan.rows:
        assert row.recipe.micro_batch_size * row.recipe.accumulation_steps * 64 == 256
        assert row.estimate.tokens_per_step == 4 * 63  # the first token of a row is predicted from nothing


def test_a_smaller_budget_leaves_fewer_or_leaner_rows(tiny_plan, tiny):
    least = min(row.need.total_bytes for row in tiny_plan.rows)
    budget = int((least + 200_000) / 0.92)
    exclude = ["low-rank", "8-bit-states", "int8-weights"]
    tight = plan(tiny, budget, device="cpu", seq_len=64, tokens_per_step=256, exclude=exclude)
    wide = {row.family: row.need.total_bytes for row in tiny_plan.rows}
    assert 0 < len(tight.rows) < sum("8-bit-states" not in row.tags for row in tiny_plan.rows)
    for row in tight.rows:
        assert row.need.total_bytes <= min(wide[row.family], tight.target.usable_bytes)
    assert "AdamW, float32 weights" in tight.refused
    assert all("needs about" in reason and "weights" in reason for reason in tight.refused.values())


def test_on_a_cpu_moments_have_16_bits_where_the_memory_is_there(tiny_plan):
    names = [row.family for row in tiny_plan.rows]
    assert "AdamW 16-bit" in names and "AdamW 8-bit" not in names
    assert any("moments of 16 bits" in line for line in tiny_plan.assumptions)


def test_the_best_recipe_trains_and_takes_what_was_estimated(tiny_plan):
    footprint, _ = measure(tiny_plan.best.recipe, steps=2)
    assert footprint.peak_bytes == tiny_plan.best.estimate.peak_bytes


def test_the_reasons_of_a_plan_are_those_of_its_best_recipe(tiny_plan):
    why = tiny_plan.why(limit=2)
    assert why.recipe == tiny_plan.best.recipe and why.name == tiny_plan.best.family
    assert why.largest == tiny_plan.best.estimate.top_allocations(5) and len(why.changes) == 2
    assert why.need == tiny_plan.best.need


def test_where_nothing_fits_the_nearest_is_simulated_and_explained(tiny):
    nothing = plan(tiny, "100MB", device="cpu", seq_len=64, exclude=ONLY_EXACT)
    nearest = nothing.nearest
    assert nearest.family == "AdamW, float32 weights" and not nearest.need.fits(nothing.target)
    why = nothing.why(limit=1)
    assert why.recipe == nearest.recipe and len(why.changes) == 1
    assert nothing.to_dict()["nearest"]["total_bytes"] == nearest.need.total_bytes
    assert f"Nearest: {nearest.family}, activations: {nearest.keeping}, needs " in str(nothing.report())


@pytest.mark.slow
def test_the_nearest_miss_is_the_leanest_of_all(tiny, tiny_plan):
    nothing = plan(tiny, "100MB", device="cpu", seq_len=64, tokens_per_step=256, exclude=["low-rank", "int8-weights"])
    assert nothing.nearest.need.total_bytes <= min(row.need.total_bytes for row in tiny_plan.rows)
    assert tiny_plan.nearest is None and "nearest" not in tiny_plan.to_dict()


def test_plain_values_have_stable_names_and_survive_json(tiny_plan):
    content = json.loads(json.dumps(tiny_plan.to_dict()))
    assert content == tiny_plan.to_dict()
    assert set(content) >= {"verdict", "device", "budget_bytes", "usable_bytes", "versions", "refused", "assumptions"}
    first = content
    assert [one["family"] for one in content["alternatives"]] == [row.family for row in tiny_plan.rows[1:]]
    names = {"total_bytes", "interval", "peak_allocated_bytes", "peak_reserved_bytes", "context_bytes", "by_category"}
    assert set(first) >= names | {"workspace_bytes", "by_module", "top_allocations", "tags", "tokens_per_s"}
    assert sum(first["by_category"].values()) == first["peak_allocated_bytes"]
    assert len(content["assumptions"]) >= 3 and all(isinstance(one, str) for one in content["assumptions"])
    assert load_recipe(first["recipe"]) == tiny_plan.best.recipe


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seq_len": 0}, "seq_len"),
        ({"seq_len": -5}, "seq_len"),
        ({"tokens_per_step": 0}, "tokens_per_step=0 is out of range"),
        ({"exclude": ["quality"]}, "is no tag"),
        ({"model": None}, "model=None and recipe=None"),
        ({"model": 3}, "model=int is no model"),
    ],
)
def test_wrong_arguments_are_errors(tiny, arguments, message):
    with pytest.raises(ConfigError, match=message):
        plan(**{"model": tiny, "budget": "1GB", "device": "cpu"} | arguments)


_LARGE = """
import resource
from featherweight.planner import plan
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
found = plan("llama-3-8b", "16GB", device="rtx4080")
print(found.seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, len(found.rows))
"""


@pytest.mark.slow
def test_a_search_for_eight_billion_parameters_takes_a_minute_and_two_gigabytes():
    done = subprocess.run([sys.executable, "-c", _LARGE], capture_output=True, text=True, timeout=300, check=True)
    seconds, kilobytes, rows = map(float, done.stdout.split())
    assert seconds < 60 and kilobytes < 2 * 10**6 and rows >= 1
