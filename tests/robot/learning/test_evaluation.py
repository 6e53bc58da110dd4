"""Counting cubes."""

import pytest

from featherweight.robot.learning.bc import BCConfig, BCPolicy
from featherweight.robot.learning.evaluation import Evaluation, evaluate

pytest.importorskip("mujoco")


@pytest.mark.slow
def test_the_expert_succeeds_and_a_policy_that_learnt_nothing_does_not():
    told = []
    result = evaluate(None, [10_000, 10_001], lambda seed, is_placed: told.append((seed, is_placed)))
    assert result.successes == 2 and told == [(10_000, True), (10_001, True)] and min(result.times_s) > 5
    assert evaluate(BCPolicy(BCConfig(hidden=8, layers=1)), [10_000]).successes == 0


def test_the_interval_is_wilson_s():
    low, high = Evaluation(placed=[True] * 47 + [False] * 3).interval
    assert low == pytest.approx(0.838, abs=0.001) and high == pytest.approx(0.979, abs=0.001)
