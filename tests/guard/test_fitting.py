import pytest
import torch

from featherweight.errors import ConfigError
from featherweight.guard.fitting import measured_by, unseen_auroc
from featherweight.guard.linear import cross_fit


def test_categories_that_a_score_has_learned_by_heart_do_not_count_as_told_apart():
    draw = torch.Generator().manual_seed(0)
    # Each category has a direction of its own, and nothing else tells the classes apart.
    names = [f"kind {row % 20}" for row in range(400)]
    labels = torch.tensor([row % 20 % 2 for row in range(400)])
    own = torch.eye(20)[[row % 20 for row in range(400)]] + 0.1 * torch.randn(400, 20, generator=draw)
    found = unseen_auroc(own, labels, names)
    mixed = unseen_auroc(own, labels, [f"row {row}" for row in range(400)])
    assert mixed > 0.99 and found < 0.7


def test_without_categories_or_with_too_few_there_is_no_such_number():
    labels = torch.tensor([0, 1] * 10)
    assert unseen_auroc(torch.randn(20, 3), labels, [""] * 20) is None
    assert unseen_auroc(torch.randn(20, 3), labels, ["a", "b"] * 10) is None


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_prompt_outside_of_the_fit_without_finite_features_makes_no_guard_whose_threshold_is_no_number(value):
    draw = torch.Generator().manual_seed(0)
    features, fit = torch.randn(60, 3, generator=draw), torch.arange(60) < 40
    fitted = cross_fit(features[fit], torch.arange(40) % 2)
    measured = measured_by(fitted, fit, features)
    features[50, 1] = value
    with pytest.raises(ConfigError, match="scores of 1 prompts are not finite"):
        measured_by(fitted, fit, features)
    with pytest.raises(ConfigError, match="scores of 1 prompts are not finite"):
        measured.again(features)
