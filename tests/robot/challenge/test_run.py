"""Runs of the challenge."""

import pytest

from featherweight.errors import ConfigError
from featherweight.robot.challenge.log import read_log
from featherweight.robot.challenge.run import parse_impairment, run_challenge
from featherweight.robot.challenge.score import score_log
from featherweight.robot.network.impaired import Impairment

pytest.importorskip("mujoco")


def test_a_log_is_scored_again_to_the_same_number_and_a_run_repeats_itself(tmp_path):
    network = parse_impairment("150ms+-30,1%")
    score = run_challenge("hand", None, 10_000, network, log=tmp_path / "one.jsonl")
    assert score.placed == 1 and 100 < score.points < 120 and 140 < score.round_trip_ms < 200
    assert score_log(read_log(tmp_path / "one.jsonl")) == score
    assert run_challenge("hand", None, 10_000, network, log=tmp_path / "two.jsonl") == score
    assert (tmp_path / "one.jsonl").read_bytes() == (tmp_path / "two.jsonl").read_bytes()


def test_networks_have_names_or_words():
    assert parse_impairment("tokyo-dhaka") == Impairment.preset("tokyo-dhaka")
    assert parse_impairment("300ms") == Impairment(delay_s=0.15)
    assert parse_impairment("20.5ms±4") == Impairment(delay_s=0.01025, jitter_s=0.002)
    for words in ("tokio-dhaka", "150", "150ms,1", "-5ms"):
        with pytest.raises(ConfigError, match="is unknown; expected a network"):
            parse_impairment(words)


def test_operators_that_cannot_be_are_one_sentence():
    with pytest.raises(ConfigError, match="operator=polcy is unknown.*Did you mean 'policy'"):
        run_challenge("polcy", None, 0, Impairment())
    with pytest.raises(ConfigError, match="operator=shared needs a policy"):
        run_challenge("shared", None, 0, Impairment())


def test_a_network_over_which_every_command_comes_too_late_is_refused_unless_older_ones_are_allowed():
    satellite = Impairment.preset("satellite")
    with pytest.raises(ConfigError, match="delay_ms=300 is not below max_age_ms=250.*--max-age"):
        run_challenge("hand", None, 10_000, satellite)
    score = run_challenge("hand", None, 10_000, satellite, longest_s=6.0, max_age_ms=500)
    assert score.path_m > 0.05 and 550 < score.round_trip_ms < 700
