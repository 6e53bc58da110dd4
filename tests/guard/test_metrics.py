import math

import pytest
import torch

from featherweight.guard.metrics import (
    auroc,
    auroc_interval,
    average_precision,
    beta_quantile,
    beta_share,
    calibration_error,
    conformal_rank,
    conformal_threshold,
    fit_platt,
    fpr_at_tpr,
    rate_interval,
    roc_curve,
    tpr_at_fpr,
)


def draws(seed, positives=40, negatives=60):
    """Rounded, so that there are ties."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(positives, generator=generator) + 1).round(decimals=1), torch.randn(
        negatives, generator=generator
    ).round(decimals=1)


@pytest.mark.parametrize("seed", range(5))
def test_auroc_is_the_share_of_ordered_pairs_with_ties_counted_half(seed):
    positives, negatives = draws(seed)
    pairs = (positives[:, None] > negatives).double() + 0.5 * (positives[:, None] == negatives).double()
    assert auroc(positives, negatives) == pytest.approx(float(pairs.mean()), abs=1e-12)
    assert auroc(-positives, -negatives) == pytest.approx(1 - auroc(positives, negatives), abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_false_alarms_at_a_share_of_hits_are_those_of_a_scan_over_all_thresholds(seed):
    positives, negatives = draws(seed)
    scan = []
    for level in torch.cat([positives, negatives]).unique():
        if float((positives >= level).double().mean()) >= 0.95:
            scan.append(float((negatives >= level).double().mean()))
    assert fpr_at_tpr(positives, negatives, 0.95) == min(scan)
    above = [
        float((positives > level).double().mean())
        for level in torch.cat([positives, negatives]).unique()
        if float((negatives > level).double().mean()) <= 0.1
    ]
    assert tpr_at_fpr(positives, negatives, 0.1) == max(above)


def test_the_area_under_the_curve_is_the_auroc():
    positives, negatives = draws(1)
    fprs, tprs = roc_curve(positives, negatives)
    assert (fprs[0], tprs[0], fprs[-1], tprs[-1]) == (0, 0, 1, 1)
    area = torch.trapezoid(torch.tensor(tprs, dtype=torch.float64), torch.tensor(fprs, dtype=torch.float64))
    assert float(area) == pytest.approx(auroc(positives, negatives), abs=1e-12)


def test_intervals_of_rates_are_quantiles_of_beta_distributions():
    scipy = pytest.importorskip("scipy.stats")
    for hits, count in ((0, 30), (3, 30), (29, 30), (30, 30), (5, 500)):
        low, high = rate_interval(hits, count)
        assert low == pytest.approx(0.0 if hits == 0 else scipy.beta.ppf(0.025, hits, count - hits + 1), abs=1e-9)
        assert high == pytest.approx(1.0 if hits == count else scipy.beta.ppf(0.975, hits + 1, count - hits), abs=1e-9)
    assert beta_share(0.3, 4, 9) == pytest.approx(scipy.beta.cdf(0.3, 4, 9), abs=1e-12)
    assert beta_quantile(0.9, 4, 9) == pytest.approx(scipy.beta.ppf(0.9, 4, 9), abs=1e-9)
    assert rate_interval(0, 0) == (0.0, 1.0)


def test_the_interval_of_the_auroc_holds_the_true_one_about_as_often_as_it_says():
    inside = 0
    for seed in range(200):
        low, high = auroc_interval(*draws(seed))
        # Two normal distributions one apart: Phi(1 / sqrt(2)).
        inside += low <= 0.7602 <= high
    # 95 % of 200 within three standard errors.
    assert 180 <= inside <= 199


@pytest.mark.parametrize("target", [0.01, 0.05])
def test_conformal_thresholds_keep_their_promise_on_average_and_waste_little(target):
    count, fresh, rounds = 199, 200, 2000
    generator = torch.Generator().manual_seed(0)
    rates = torch.empty(rounds, dtype=torch.float64)
    for index in range(rounds):
        scores = torch.randn(count + fresh, generator=generator)
        threshold = conformal_threshold(scores[:count], target)
        rates[index] = (scores[count:] > threshold).double().mean()
    error = 3 * float(rates.std()) / math.sqrt(rounds)
    assert target - 1 / (count + 1) - error <= float(rates.mean()) <= target + error


def test_a_promise_with_confidence_holds_in_that_share_of_calibrations():
    count, target = 400, 0.02
    rank = conformal_rank(count, target, 0.95)
    assert rank > conformal_rank(count, target)
    generator = torch.Generator().manual_seed(0)
    # The rate of one calibration is 1 - the r-th smallest of uniform draws.
    kept = sum(float(torch.rand(count, generator=generator).sort().values[rank - 1]) >= 1 - target for _ in range(1000))
    assert kept >= 930
    assert conformal_rank(298, 0.01, 0.95) > 298 and conformal_rank(299, 0.01, 0.95) == 299


def test_too_few_scores_promise_nothing():
    assert conformal_threshold(torch.arange(98.0), 0.01) == math.inf
    assert conformal_threshold(torch.arange(99.0), 0.01) == 98.0


def test_ties_at_the_threshold_are_not_flagged():
    scores = torch.tensor([0.0] * 90 + [1.0] * 10)
    assert float((scores > conformal_threshold(scores, 0.05)).double().mean()) <= 0.05


def test_precision_and_calibration_of_perfect_scores():
    assert average_precision(torch.tensor([2.0, 3.0]), torch.tensor([0.0, 1.0])) == 1.0
    assert average_precision(torch.tensor([1.0]), torch.tensor([2.0])) == 0.5
    assert calibration_error([50.0, -50.0], [1, 0]) == pytest.approx(0, abs=1e-9)
    assert calibration_error([50.0, -50.0], [0, 1]) == pytest.approx(1, abs=1e-9)


def test_platts_scaling_finds_the_log_odds_of_scores_that_follow_them():
    draw = torch.Generator().manual_seed(0)
    scores = torch.randn(20_000, generator=draw, dtype=torch.float64) * 3 + 5
    labels = torch.rand(20_000, generator=draw) < (0.7 * scores - 2.0).sigmoid()
    slope, offset = fit_platt(scores[labels], scores[~labels])
    # Standard errors of 20,000 draws are 0.013 and 0.05; three of them.
    assert slope == pytest.approx(0.7, abs=0.04) and offset == pytest.approx(-2.0, abs=0.15)


def test_platts_scaling_stays_finite_without_overlap_and_never_turns_scores_round():
    slope, offset = fit_platt(torch.tensor([3.0, 4.0, 5.0]), torch.tensor([0.0, 1.0]))
    assert math.isfinite(slope) and math.isfinite(offset) and slope > 0
    slope, _ = fit_platt(torch.tensor([0.0, 1.0]), torch.tensor([3.0, 4.0]))
    assert slope == 0.0
