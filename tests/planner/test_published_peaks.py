"""Peaks that others measured on their GPUs, beside what the planner says of the same settings.

`fixtures/published_peaks.csv` holds settings, sources, published peaks and today's predictions. `counts` says what the
source measured: the tensors that torch holds at the peak, or the whole process on the card.
"""

import csv
import json
from pathlib import Path

import pytest

from featherweight.planner import Target, need_of
from featherweight.training.estimate import estimate_memory

UNITS = {"GB": 10**9, "GiB": 2**30}
ROOT = Path(__file__).parents[2]
with open(Path(__file__).parent / "fixtures" / "published_peaks.csv", encoding="utf-8") as _file:
    ROWS = list(csv.DictReader(_file))

# Further off than the others, for reasons that docs/planner.md gives with numbers.
EXPLAINED = {
    "+ compiled, loss in chunks (ours: not compiled)": 13,
    "+ 8-bit AdamW": -18,
    "Qwen-1.8B, LoRA r 64, checkpointing, 8 x 256 tokens accumulated": -12,
}
QWEN_PERCENT = 11  # either way: allocator and libraries of 2023 on top of small models


SIMULATED = [
    pytest.param(row, marks=[] if row["quick"] == "yes" else pytest.mark.slow, id=row["setting"]) for row in ROWS
]


def off_by_percent(row, predicted):
    return 100 * (float(predicted) / float(row["published"]) - 1)


@pytest.mark.parametrize("row", SIMULATED)
def test_predictions_of_published_settings_are_those_of_the_table(row):
    target = Target.of("80GB", "a100")
    estimate = estimate_memory(json.loads(row["model"]), json.loads(row["recipe"]), device=target.device)

    unit = UNITS[row["unit"]]
    # Two digits stand in the table; 0.5 % leaves room for other releases of transformers and PEFT.
    assert estimate.peak_bytes / unit == pytest.approx(float(row["tensors"]), rel=5e-3)
    # The allocator rounds segments to 2 MiB and more: a tensor that comes earlier moves some of them.
    assert need_of(estimate, target).total_bytes / unit == pytest.approx(float(row["process"]), rel=3e-2)


# Mutation: a kind of memory that the simulation no longer sees (moments, checkpoints, logits) moves a row by more.
@pytest.mark.parametrize("row", [pytest.param(row, id=row["setting"]) for row in ROWS])
def test_published_peaks_are_met_within_a_few_percent(row):
    off = off_by_percent(row, row[row["counts"]])
    if row["setting"] in EXPLAINED:
        limit = EXPLAINED[row["setting"]]
        assert min(limit, 0) <= off <= max(limit, 0)
    elif row["counts"] == "process":
        assert abs(off) <= QWEN_PERCENT
    else:
        assert -8 <= off <= 3


def test_the_documentation_shows_every_row():
    page = (ROOT / "docs" / "planner.md").read_text(encoding="utf-8")
    for row in ROWS:
        published = f"{float(row['published']):g} {row['unit']}"
        tensors, process = (f"{float(row[name]):.1f}" for name in ("tensors", "process"))
        off = off_by_percent(row, row[row["counts"]])
        assert f"| {row['setting']} | {published} | {tensors} | {process} | {off:+.1f} % |" in page
