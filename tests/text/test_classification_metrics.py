"""Accuracy, macro F1 and Matthews correlation equal what is written out by hand."""

import math

import pytest
import torch

from featherweight.text.classification_metrics import classification_metrics, confusions


def by_hand(true, predicted):
    """The slow way, class by class and pair by pair."""
    classes = sorted(set(true) | set(predicted))
    f1 = []
    for one in classes:
        hits = sum(a == b == one for a, b in zip(true, predicted, strict=True))
        f1.append(2 * hits / (true.count(one) + predicted.count(one)))

    # Covariance of the indicators of all classes, over the root of their variances.
    def covariance(a, b):
        return sum(
            sum((x == k) * (y == k) for x, y in zip(a, b, strict=True)) / len(a)
            - a.count(k) / len(a) * b.count(k) / len(b)
            for k in classes
        )

    spread = covariance(true, true) * covariance(predicted, predicted)
    return {
        "accuracy": sum(a == b for a, b in zip(true, predicted, strict=True)) / len(true),
        "macro_f1": sum(f1) / len(f1),
        "matthews": covariance(true, predicted) / math.sqrt(spread) if spread > 1e-15 else 0.0,
    }


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_metrics_equal_those_written_out(classes, generator):
    true = torch.randint(classes, (101,), generator=generator)
    predicted = torch.where(torch.rand(101, generator=generator) < 0.5, true, (true + 1) % classes)
    found = classification_metrics(confusions(true, predicted, classes))
    # float64 sums in another order; a transposed table or a missing square would change the third digit.
    assert found == pytest.approx(by_hand(true.tolist(), predicted.tolist()), rel=1e-12)


def test_classes_that_never_occur_do_not_count_and_one_prediction_alone_has_no_correlation():
    true, predicted = torch.tensor([0, 1, 1, 0]), torch.zeros(4, dtype=torch.int64)
    found = classification_metrics(confusions(true, predicted, 5))
    assert found == {"accuracy": 0.5, "macro_f1": pytest.approx((2 * 2 / 6) / 2), "matthews": 0.0}


def test_all_right_is_one():
    true = torch.tensor([2, 0, 1])
    assert classification_metrics(confusions(true, true, 3)) == {"accuracy": 1.0, "macro_f1": 1.0, "matthews": 1.0}
