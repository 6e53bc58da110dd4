import pytest

from featherweight.errors import ConfigError
from featherweight.training.best import BestMetric, EarlyStop, best_evaluation, waited_in_vain


def lines(*values, metric="held_out_loss"):
    return [{"event": "evaluate", "step": 10 * index, metric: value} for index, value in enumerate(values)]


def test_the_best_is_the_first_of_equal_ones_and_never_the_untrained_model():
    assert best_evaluation(lines(0.1, 3.0, 2.0, 2.0, 2.5), BestMetric())["step"] == 20
    assert best_evaluation(lines(0.1, None), BestMetric()) is None
    rising = lines(0.9, 0.2, 0.7, 0.7, metric="accuracy")
    assert best_evaluation(rising, BestMetric(metric="accuracy"))["step"] == 20
    assert best_evaluation(rising, BestMetric(metric="accuracy", direction="min"))["step"] == 10


def test_waiting_begins_anew_only_with_a_gain_beyond_the_threshold():
    falling = lines(9.0, 3.0, 2.9, 2.85, 2.5, 2.6, None)
    assert waited_in_vain(falling, EarlyStop()) == 2
    assert waited_in_vain(falling, EarlyStop(threshold=0.4)) == 2
    assert waited_in_vain(falling, EarlyStop(threshold=0.5)) == 5


def test_a_metric_that_nobody_measures_or_understands_is_refused_with_what_there_is():
    with pytest.raises(ConfigError, match="metric=acuracy is none .*expected one of accuracy"):
        best_evaluation(lines(1.0, 1.0, metric="accuracy"), BestMetric(metric="acuracy", direction="max"))
    with pytest.raises(ConfigError, match="metric=joy does not say .*direction: max"):
        best_evaluation(lines(1.0, 1.0, 2.0, metric="joy"), BestMetric(metric="joy"))
