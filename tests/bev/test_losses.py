import pytest
import torch

from featherweight.bev.loss_weights import LossWeights
from featherweight.bev.losses import (
    cycle_loss,
    dilate,
    iou_loss,
    occupancy_loss,
    pitch_loss,
    relevance_loss,
    uncertainty_loss,
    weighted_bce,
)

SEEN = torch.ones(1, 60, 60, dtype=torch.bool)


def square(side: int, at: int = 5) -> torch.Tensor:
    mask = torch.zeros(1, 1, 60, 60)
    mask[..., at : at + side, at : at + side] = 1
    return mask


def logits_of(mask: torch.Tensor) -> torch.Tensor:
    return 60 * mask - 30


def test_a_perfect_prediction_costs_nothing():
    truth = torch.rand(2, 3, 60, 60).round()
    assert iou_loss(logits_of(truth), truth, SEEN.expand(2, -1, -1)) <= 1e-6


def test_a_class_that_is_nowhere_costs_nothing_and_false_cells_of_it_do():
    nothing = torch.zeros(1, 1, 60, 60)
    assert iou_loss(logits_of(nothing), nothing, SEEN) <= 1e-6
    logits = torch.full_like(nothing, -3.0).requires_grad_()
    loss = iou_loss(logits, nothing, SEEN)
    loss.backward()
    assert loss > 0.5 and (logits.grad > 0).any()


def test_no_seen_cell_is_a_finite_zero():
    logits = torch.randn(1, 2, 60, 60, requires_grad=True)
    loss = iou_loss(logits, torch.ones(1, 2, 60, 60), SEEN & False)
    loss.backward()
    assert loss == 0 and logits.grad.isfinite().all()


def test_ten_cells_count_as_much_as_ten_thousand():
    losses = []
    for side in (4, 30):
        truth, shifted = square(side), square(side, 5 + side // 2)
        losses.append(iou_loss(logits_of(shifted), truth, SEEN, tolerance_weights=(1.0,), eps=0.0))
    torch.testing.assert_close(losses[0], losses[1], rtol=0.01, atol=0)


def test_losses_of_frames_add_up_unless_they_are_pooled():
    logits, truth = torch.randn(4, 3, 60, 60), (torch.rand(4, 3, 60, 60) < 0.3).float()
    seen = torch.rand(4, 60, 60) < 0.5
    for loss in (iou_loss, lambda *given: uncertainty_loss(given[0], given[2], (0.3, 0.2, 0.1))):
        parts = [loss(logits[n : n + 1], truth[n : n + 1], seen[n : n + 1]) for n in range(4)]
        torch.testing.assert_close(loss(logits, truth, seen), torch.stack(parts).mean())
    pooled = [iou_loss(logits[part], truth[part], seen[part], pooled=True) for part in (slice(0, 2), slice(2, 4))]
    assert not torch.isclose(iou_loss(logits, truth, seen, pooled=True), torch.stack(pooled).mean(), atol=1e-6)


def test_a_small_displacement_costs_less_than_a_miss():
    truth = square(3)
    near, far = (iou_loss(logits_of(square(3, at)), truth, SEEN) for at in (6, 30))
    assert near < far


@pytest.mark.parametrize("cells", [1, 2])
def test_dilation_is_max_pooling_with_its_gradients(cells):
    torch.manual_seed(0)
    given = torch.randn(2, 3, 13, 9, dtype=torch.float64, requires_grad=True)
    pooled = torch.nn.functional.max_pool2d(given, 2 * cells + 1, stride=1, padding=cells)
    assert torch.equal(dilate(given, cells), pooled)
    weight = torch.randn_like(pooled)
    for one, other in zip(
        torch.autograd.grad(dilate(given, cells), given, weight),
        torch.autograd.grad(pooled, given, weight),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    equal = torch.ones(1, 1, 5, 5, requires_grad=True)
    dilate(equal, cells).sum().backward()
    assert equal.grad.sum() == 25  # of equal values each window takes one


def test_bfloat16_logits_are_summed_in_float32():
    logits, truth = torch.randn(2, 14, 98, 100), (torch.rand(2, 14, 98, 100) < 0.2).float()
    seen = torch.rand(2, 98, 100) < 0.7
    exact = iou_loss(logits, truth, seen)
    assert (iou_loss(logits.bfloat16(), truth, seen) - exact).abs() < 1e-3


def test_rare_positives_weigh_more_and_unseen_cells_nothing():
    logits, truth = torch.zeros(1, 2, 60, 60), torch.ones(1, 2, 60, 60)
    loss = weighted_bce(logits, truth, SEEN, (0.25, 0.01))
    assert loss == pytest.approx(0.6931 * (2 + 10) / 2, rel=1e-3)
    assert weighted_bce(logits, truth, SEEN & False, (0.25, 0.01)) == 0


def test_unseen_cells_are_pulled_to_the_prior():
    logits = torch.logit(torch.tensor([0.3, 0.1]))[None, :, None, None].expand(1, 2, 60, 60).clone().requires_grad_()
    uncertainty_loss(logits, SEEN & False, (0.3, 0.1)).backward()
    assert logits.grad.abs().max() < 1e-7
    assert uncertainty_loss(logits, SEEN, (0.3, 0.1)) == 0


def test_the_cycle_teaches_neither_the_features_nor_the_relevance():
    features, restored, relevance = (torch.randn(1, 4, 6, 6, requires_grad=True) for _ in range(3))
    cycle_loss(features, restored, relevance[:, :1]).backward()
    assert features.grad is None and relevance.grad is None and restored.grad.abs().sum() > 0
    assert cycle_loss(features, features, relevance[:, :1]) == 0


def test_relevance_is_compared_with_the_share_of_a_coarser_pixel():
    target = torch.zeros(1, 1, 8, 8)
    target[..., :4, :] = 1
    logits = torch.tensor([30.0, -30.0])[None, None, :, None].expand(1, 1, 2, 2)
    assert relevance_loss(logits, target) < 1e-6 and relevance_loss(-logits, target) > 20


def test_pitch_errors_are_in_degrees():
    assert pitch_loss(torch.tensor([[0.01, 0.0]]), torch.zeros(1, 2)) == pytest.approx(0.2865, abs=1e-3)


def test_the_total_is_the_weighted_sum():
    terms = {"bce": torch.tensor(2.0), "iou": torch.tensor(0.5), "cycle": torch.tensor(1.0)}
    assert LossWeights().total(terms) == pytest.approx(2.6)


def test_a_car_taken_for_a_truck_is_occupied_ground_and_one_that_is_missed_is_not():
    truth = torch.cat([square(8), torch.zeros(1, 2, 60, 60)], dim=1)  # car, truck, road
    swapped = truth[:, [1, 0, 2]]
    costs = [occupancy_loss(logits_of(one), truth, SEEN, (0, 1)) for one in (truth, swapped, 0 * truth)]
    assert costs[0] <= 1e-5 and costs[1] <= 1e-5 and costs[2] > 0.9
    logits = torch.full_like(truth, -9.0).requires_grad_()
    occupancy_loss(logits, truth, SEEN, (0, 1)).backward()
    assert logits.grad.isfinite().all() and (logits.grad[:, 2] == 0).all()
