import math
import random

import pytest
import torch

from featherweight.errors import ConfigError
from featherweight.guard.evidence import Evidence
from featherweight.guard.fitting import measured_by
from featherweight.guard.linear import cross_fit
from featherweight.guard.options import GuardOptions
from featherweight.guard.reading import Collected
from featherweight.guard.scoring import Scoring
from featherweight.guard.splits import Rows
from featherweight.guard.thresholds import KNOWN_FLAGGED, Goal, clearing_limit, decide, just_below


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


def rows_with_own_rates(plain, close, far):
    """Benign rows of the threshold, borderline ones of the fit and of the threshold, and a category."""
    rows = Rows()
    for index in range(plain):
        rows.add([], f"plain {index}", "benign", "calibrate", "")
    for index in range(close):
        rows.add([], f"close {index}", "borderline", "fit" if index % 2 else "calibrate", "")
    for index in range(far):
        rows.add([], f"far {index}", "benign", "fit", "far")
    return rows


@pytest.mark.parametrize("shift, binding", [(0.0, "plain"), (1.5, "close"), (2.5, "close")])
def test_borderline_requests_and_categories_keep_rates_of_their_own(shift, binding):
    goal = Goal(0.02, borderline_fpr=0.05, category_fpr={"far": 0.1})
    draw, rows = torch.Generator().manual_seed(3), rows_with_own_rates(200, 100, 60)
    names, found = ("plain", "close", "far"), []
    shifts = torch.tensor([0.0] * 200 + [shift] * 100 + [shift / 2] * 60)
    for _ in range(200):
        threshold = goal.threshold(torch.randn(360, generator=draw) + shifts, rows)
        fresh = torch.randn(3, 2000, generator=draw) + torch.tensor([[0.0], [shift], [shift / 2]])
        found.append((fresh > threshold).double().mean(dim=1))
    rates, errors = torch.stack(found).mean(dim=0), 3 * torch.stack(found).std(dim=0) / 200**0.5
    promised = dict(zip(names, (0.02, 0.05, 0.1), strict=True))
    for place, name in enumerate(names):
        assert rates[place] <= promised[name] + errors[place]
    # The one that is hardest to keep is used up, but for the steps of its few rows.
    assert rates[names.index(binding)] >= promised[binding] - 1 / 100 - errors[names.index(binding)]
    assert "At most" not in goal.promise and "those of category 'far', at most 10.00%" in goal.promise


def test_rates_of_their_own_need_rows_and_go_with_a_promised_rate():
    rows = rows_with_own_rates(200, 18, 0)
    for goal, message in (
        (Goal(borderline_fpr=0.05), "borderline_fpr=0.05 of 'borderline' rests on 18 prompts"),
        (Goal(category_fpr={"fra": 0.05}), "category_fpr=0.05 of 'fra' rests on 0 prompts"),
    ):
        with pytest.raises(ConfigError, match=message):
            goal.check_rows(rows)
        with pytest.raises(ConfigError, match=message):
            goal.threshold(torch.zeros(218), rows)
    with pytest.raises(ConfigError, match="or name another category: far"):
        Goal(category_fpr={"fra": 0.05}).check_rows(rows_with_own_rates(200, 18, 60))
    Goal(category_fpr={"far": 0.05}).check_rows(rows_with_own_rates(200, 18, 19))
    for goal, message in (
        (Goal(borderline_fpr=2.0), "borderline_fpr=2.0 is no share"),
        (Goal(category_fpr={"far": 0.0}), "category_fpr\\['far'\\]=0.0 is no share"),
        (Goal(category_fpr={"far": math.nan}), "category_fpr\\['far'\\]=nan is no share"),
        (Goal(category_fpr={"far": None}), "category_fpr\\['far'\\]=None is no share"),
        (Goal(borderline_fpr="0.1"), "borderline_fpr=0.1 is no share"),
        (Goal(target_tpr=0.9, borderline_fpr=0.1), "go with a promised rate"),
    ):
        with pytest.raises(ConfigError, match=message):
            goal.check()


def test_an_early_place_is_judged_by_scores_that_have_not_learned_its_rows_by_heart():
    draw, rows = torch.Generator().manual_seed(0), Rows()
    labels = torch.tensor([1] * 120 + [0] * 220)
    for index in range(340):
        kind, part = "harmful" if index < 120 else "benign", "fit" if index < 240 else "calibrate"
        rows.add([], f"{index}", kind, part, "")
    whole = torch.randn(340, 150, generator=draw)
    whole[:120, 0] += 3.0
    early = whole + 0.3 * torch.randn(340, 150, generator=draw)
    fit = torch.arange(340) < 240
    fitted = cross_fit(whole[fit], labels[fit], strengths=(1e-4,))
    options = GuardOptions(prefix_text="x", prefix_ids=[1], layers=[1], stages=[{"tier": "probe_hidden"}])
    judge = Scoring(options, {"probe_hidden": fitted.score})
    measured = {"probe_hidden": measured_by(fitted, fit, whole)}
    collected = Collected(Evidence(probe_hidden=whole), {4: Evidence(probe_hidden=early)})
    decided = decide(options, measured, judge, collected, rows, "probe_hidden", Goal(0.3))
    needed = fit & (labels == 1) & (measured["probe_hidden"].scores > decided.deciding.flag_above)
    by_heart = clearing_limit(fitted.score(early)[needed])
    assert decided.early_exit[0].clear_at_most == clearing_limit(fitted.held_out(early[fit])[needed[fit]]) < by_heart
