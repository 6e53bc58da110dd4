import math
import random

import pytest
import torch

from featherweight.errors import ConfigError
from featherweight.guard.splits import Rows
from featherweight.guard.thresholds import KNOWN_FLAGGED, Goal, clearing_limit, just_below


def rows_of(harmful, benign):
    """Rows of the part that sets thresholds."""
    rows = Rows()
    for kind, count in (("harmful", harmful), ("benign", benign)):
        for index in range(count):
            rows.add([], f"{kind} {index}", kind, "calibrate", "")
    return rows


def test_an_earlier_look_clears_no_known_request_that_has_to_be_flagged():
    scores = torch.randn(200, generator=torch.Generator().manual_seed(0)) - 1
    limit = clearing_limit(scores)
    assert limit < scores.min() and limit == just_below(float(scores.min()))
    assert clearing_limit(scores[: KNOWN_FLAGGED - 1]) is None
    assert clearing_limit(scores + 20) == 0.0  # and nothing that it calls likelier harmful


def test_an_earlier_look_loses_at_most_the_share_that_the_number_of_known_requests_allows():
    draw = torch.Generator().manual_seed(0)
    lost = [
        float(
            (torch.randn(2000, generator=draw) - 9 <= clearing_limit(torch.randn(60, generator=draw) - 9))
            .double()
            .mean()
        )
        for _ in range(200)
    ]
    found = torch.tensor(lost)
    # Exchangeable scores: 1 in 61 on average. Mutation: the second smallest as limit doubles it.
    assert abs(float(found.mean()) - 1 / 61) < 3 * float(found.std()) / 200**0.5


@pytest.mark.parametrize("target", [0.8, 0.95])
def test_a_promised_share_of_flagged_requests_is_kept_on_average(target):
    draw, rows, found = torch.Generator().manual_seed(1), rows_of(60, 30), []
    for _ in range(300):
        threshold = Goal(target_tpr=target).threshold(torch.randn(90, generator=draw), rows)
        found.append(float((torch.randn(1000, generator=draw) > threshold).double().mean()))
    shares = torch.tensor(found)
    error = 3 * float(shares.std()) / 300**0.5
    assert target - error <= float(shares.mean()) <= target + 1 / 61 + error


def test_the_threshold_of_least_cost_is_that_of_a_scan():
    draw = random.Random(0)
    scores = torch.tensor([draw.gauss(1, 1) for _ in range(40)] + [draw.gauss(0, 1) for _ in range(60)])
    harmful, benign = scores[:40], scores[40:]

    def cost(threshold, ratio):
        return ratio * float((harmful <= threshold).double().mean()) + float((benign > threshold).double().mean())

    for ratio in (0.2, 1.0, 10.0):
        found = Goal(cost_ratio=ratio).threshold(scores, rows_of(40, 60))
        assert cost(found, ratio) == pytest.approx(min(cost(one, ratio) for one in [-math.inf, *scores.tolist()]))


def test_goals_that_are_none_are_refused_and_each_says_what_it_promises():
    for goal, message in (
        (Goal(target_tpr=1.5), "target_tpr=1.5 is no share"),
        (Goal(cost_ratio=0.0), "cost_ratio=0.0 is no cost"),
        (Goal(confidence=95.0), "confidence=95.0 is no share"),
        (Goal(target_tpr=0.9, cost_ratio=2.0), "are two goals"),
    ):
        with pytest.raises(ConfigError, match=message):
            goal.check()
    assert "at most 1.00%" in Goal().promise and "confidence of 95%" in Goal(confidence=0.95).promise
    assert "at least 90.00%" in Goal(target_tpr=0.9).promise and "no rate is promised" in Goal(cost_ratio=9.0).promise
