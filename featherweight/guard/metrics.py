"""How well scores tell two classes apart, with intervals, and thresholds that keep a promise.

Shapes: N1 scores of what ought to be refused (positives), N0 of the rest (negatives).
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def auroc(positives_N1: Tensor, negatives_N0: Tensor) -> float:
    """Return the probability that a positive scores higher than a negative, ties counted half (Mann-Whitney).

    Example:
        >>> auroc(torch.tensor([1.0, 2.0]), torch.tensor([0.0, 1.0]))
        0.875
    """
    ordered = negatives_N0.double().sort().values
    scores = positives_N1.double()
    below, upto = torch.searchsorted(ordered, scores), torch.searchsorted(ordered, scores, right=True)
    return float((below + upto).double().mean() / (2 * len(ordered)))


def auroc_interval(positives_N1: Tensor, negatives_N0: Tensor, z: float = 1.959964) -> tuple[float, float]:
    """Return the interval of 95 % of the AUROC.

    Source: DeLong et al. 1988, by placement values.
    """
    area = auroc(positives_N1, negatives_N0)
    placed_1 = _placements(positives_N1.double(), negatives_N0.double())
    placed_0 = 1 - _placements(negatives_N0.double(), positives_N1.double())
    variance = sum(float(one.var()) / len(one) for one in (placed_1, placed_0) if len(one) > 1)
    return max(0.0, area - z * math.sqrt(variance)), min(1.0, area + z * math.sqrt(variance))


def _placements(scores: Tensor, others: Tensor) -> Tensor:
    ordered = others.sort().values
    low, high = torch.searchsorted(ordered, scores), torch.searchsorted(ordered, scores, right=True)
    return (low + high).double() / (2 * len(ordered))


def average_precision(positives_N1: Tensor, negatives_N0: Tensor) -> float:
    """Return the area under precision over recall, the mean precision at each positive."""
    positives, negatives = positives_N1.double().sort().values, negatives_N0.double().sort().values
    hits = len(positives) - torch.searchsorted(positives, positives)
    alarms = len(negatives) - torch.searchsorted(negatives, positives)
    return float((hits / (hits + alarms)).mean())


def fpr_at_tpr(positives_N1: Tensor, negatives_N0: Tensor, tpr: float) -> float:
    """Return the least rate of false alarms at which at least this share of the positives is flagged (score >= t)."""
    needed = max(1, math.ceil(tpr * len(positives_N1) - 1e-9))
    threshold = positives_N1.sort(descending=True).values[needed - 1]
    return float((negatives_N0 >= threshold).double().mean())


def tpr_at_fpr(positives_N1: Tensor, negatives_N0: Tensor, fpr: float) -> float:
    """Return the largest share of positives above a threshold that at most this share of the negatives exceeds."""
    allowed = math.floor(fpr * len(negatives_N0) + 1e-9)
    threshold = negatives_N0.sort(descending=True).values[min(allowed, len(negatives_N0) - 1)]
    return float((positives_N1 > threshold).double().mean())


def rate_interval(hits: int, count: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the exact interval of a rate.

    Source: Clopper and Pearson 1934.

    Example:
        >>> [round(edge, 4) for edge in rate_interval(0, 100)]
        [0.0, 0.0362]
    """
    if count == 0:
        return 0.0, 1.0
    tail = (1 - confidence) / 2
    low = 0.0 if hits == 0 else beta_quantile(tail, hits, count - hits + 1)
    high = 1.0 if hits == count else beta_quantile(1 - tail, hits + 1, count - hits)
    return low, high


def beta_quantile(share: float, a: int, b: int) -> float:
    """Return the place below which a beta distribution with whole parameters has this share."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if beta_share(middle, a, b) < share else (low, middle)
    return (low + high) / 2


def beta_share(x: float, a: int, b: int) -> float:
    """Return P(Beta(a, b) <= x) for whole parameters: the chance of at least a hits in a + b - 1 trials."""
    if x <= 0 or x >= 1:
        return float(x >= 1)
    count = a + b - 1
    start = math.lgamma(count + 1)
    logs = [
        start
        - math.lgamma(hits + 1)
        - math.lgamma(count - hits + 1)
        + hits * math.log(x)
        + (count - hits) * math.log1p(-x)
        for hits in range(a, count + 1)
    ]
    return min(1.0, math.fsum(math.exp(one) for one in logs))


def conformal_rank(count: int, target_fpr: float, confidence: float | None = None) -> int:
    """Return which of `count` sorted benign scores is the threshold, from 1; more than `count` means none is.

    Args:
        count: benign scores, of rows that no fit has seen.
        target_fpr: what a fresh benign request may be flagged with.
        confidence: None promises the rate on average over calibrations; 0.95 promises it for 95 % of them.

    Source: split-conformal prediction; with confidence, the rate of one calibration is Beta(count + 1 - r, r).
    """
    rank = math.ceil((1 - target_fpr) * (count + 1) - 1e-9)
    if confidence is None:
        return rank
    while rank <= count and beta_share(target_fpr, count + 1 - rank, rank) < confidence:
        rank += 1
    return rank


def conformal_threshold(benign_N0: Tensor, target_fpr: float, confidence: float | None = None) -> float:
    """Return the threshold that keeps the promise of `conformal_rank`: flagged is what scores higher.

    Returns:
        Infinity if there are too few scores for the promise.
    """
    rank = conformal_rank(len(benign_N0), target_fpr, confidence)
    return math.inf if rank > len(benign_N0) else float(benign_N0.sort().values[rank - 1])


def roc_curve(positives_N1: Tensor, negatives_N0: Tensor) -> tuple[list[float], list[float]]:
    """Return rates of false and true alarms over all thresholds, from (0, 0) to (1, 1)."""
    levels = torch.cat([positives_N1, negatives_N0]).unique(sorted=True).flip(0)
    fprs = [0.0, *[float((negatives_N0 >= level).double().mean()) for level in levels]]
    tprs = [0.0, *[float((positives_N1 >= level).double().mean()) for level in levels]]
    return fprs, tprs


def fit_platt(positives_N1: Tensor, negatives_N0: Tensor) -> tuple[float, float]:
    """Return slope (0 or more) and offset that turn scores into log-odds, at the shares of these rows.

    Source: Platt 1999, with his targets a little inside of 0 and 1, so that scores without overlap stay finite.
    """
    scores = torch.cat([positives_N1, negatives_N0]).double()
    counts = len(positives_N1), len(negatives_N0)
    goals = torch.cat(
        [
            torch.full((counts[0],), (counts[0] + 1) / (counts[0] + 2), dtype=torch.float64),
            torch.full((counts[1],), 1 / (counts[1] + 2), dtype=torch.float64),
        ]
    )
    center, width = scores.mean(), scores.std().clamp(min=1e-9)
    standard = torch.stack([(scores - center) / width, torch.ones_like(scores)], dim=1)
    found = torch.zeros(2, dtype=torch.float64)
    for _ in range(50):  # Newton, on a convex function of two numbers
        shares = (standard @ found).sigmoid()
        slopes = standard.T @ (shares - goals)
        bends = (standard.T * (shares * (1 - shares))) @ standard + 1e-9 * torch.eye(2, dtype=torch.float64)
        step = torch.linalg.solve(bends, slopes)
        found = found - step * min(1.0, 4.0 / float(step.abs().max().clamp(min=1e-12)))
        if float(step.abs().max()) < 1e-10:
            break
    slope = max(0.0, float(found[0] / width))
    return slope, float(found[1]) - slope * float(center)


def calibration_error(scores: Sequence[float], labels: Sequence[int], bins: int = 10) -> float:
    """Return the expected difference between probabilities (of log-odds) and what happened, over bins."""
    shares = torch.tensor(scores, dtype=torch.float64).sigmoid()
    happened = torch.tensor(labels, dtype=torch.float64)
    places = (shares * bins).long().clamp(max=bins - 1)
    gaps = [
        float((shares[places == one].mean() - happened[places == one].mean()).abs() * (places == one).double().mean())
        for one in range(bins)
        if bool((places == one).any())
    ]
    return math.fsum(gaps)
