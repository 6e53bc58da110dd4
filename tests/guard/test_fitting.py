import torch

from featherweight.guard.fitting import unseen_auroc


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
