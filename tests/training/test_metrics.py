import json
import math

import pytest

from featherweight.errors import ConfigError
from featherweight.training.events import Event
from featherweight.training.metrics import MetricsFile, curve, final_training_loss, read_metrics, smooth, to_json

LINES = [
    {"event": "evaluate", "step": 0, "held_out_loss": 5.0},
    {"event": "step", "step": 1, "loss": 4.0, "tokens": 10},
    {"event": "step", "step": 2, "loss": None, "tokens": 20},
    {"event": "evaluate", "step": 2, "held_out_loss": 3.0},
]


def test_a_curve_stands_over_the_tokens_seen_so_far_and_leaves_out_what_is_not_finite():
    assert curve(LINES, "evaluate", "held_out_loss") == ([0, 20], [5.0, 3.0])
    assert curve(LINES, "step", "loss") == ([10], [4.0])


def test_the_training_loss_is_the_mean_of_the_last_tenth_of_the_steps():
    lines = [{"event": "step", "loss": float(step)} for step in range(30)]
    assert final_training_loss(lines) == 28.0
    assert final_training_loss(lines[:3]) == 2.0
    assert final_training_loss([]) is None


def test_smoothing_averages_over_a_window_that_grows_at_the_start():
    assert smooth([4.0, 2.0, 0.0, 8.0], share=0.5) == [4.0, 3.0, 1.0, 4.0]
    assert smooth([]) == []


def test_a_line_cut_off_by_a_kill_is_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps(LINES[1]) + "\n" + '{"event": "st')
    assert read_metrics(path) == [LINES[1]]
    assert read_metrics(tmp_path / "absent") == []


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_json_does_not_know_become_null(value):
    assert to_json(value) is None and to_json(0.5) == 0.5


def test_a_full_disk_is_one_sentence(recipe, tmp_path):
    metrics = MetricsFile(tmp_path / "metrics.jsonl")
    event = Event(recipe(), 1, None, None, metrics={"loss": 1.0})
    metrics._file = open("/dev/full", "w")
    with pytest.raises(ConfigError, match="metrics.jsonl cannot be written \\(No space left on device\\)"):
        metrics.on_step(event)
    metrics.on_end(event)
    assert metrics._file.closed
