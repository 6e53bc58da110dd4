from guard_models import random_guard, word_tokenizer
from tiny_models import tiny_model

from featherweight.guard.latency import PHASES, add_latency, measure_latency
from featherweight.report import Report

PROMPTS = [[{"role": "user", "content": f"w{index} w9 w1"}] for index in range(4)]


def test_every_phase_is_timed_for_every_request_and_the_first_token_waits_for_all_of_them():
    guard = random_guard("llama").with_threshold(float("inf"))
    found = measure_latency(guard, tiny_model("llama"), word_tokenizer(), PROMPTS)
    assert {name: len(values) for name, values in found.items()} == dict.fromkeys((*PHASES, "first_token", "step"), 4)
    for place in range(4):
        parts = [found[name][place] for name in PHASES]
        assert all(one > 0 for one in parts) and found["first_token"][place] == sum(parts)


def test_the_report_shows_the_phases_beside_an_unguarded_request_and_what_was_added():
    report = Report("Guard")
    guard = random_guard("llama", probe_tokens=5).with_threshold(float("inf"))
    add_latency(report, guard, tiny_model("llama"), word_tokenizer(), PROMPTS)
    rows = {row[0]: row[2] for row in report.section("Latency, one request at a time").rows}
    assert rows["until the first token"] > rows["first token without a guard"]
    assert report.section("Added until the first token").facts["forward passes of a probe that is read to its end"] == 5
    flagging = Report("Guard")
    add_latency(flagging, guard.with_threshold(-float("inf")), tiny_model("llama"), word_tokenizer(), PROMPTS)
    assert "a further token of an answer" not in [row[0] for row in flagging.sections[0].rows]
