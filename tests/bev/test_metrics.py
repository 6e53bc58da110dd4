import pytest
import torch

from featherweight.bev.grid import BEVGridConfig
from featherweight.bev.metrics import BEVConfusion, protocol

GRID = BEVGridConfig(anchor="center")


def some(count: int):
    torch.manual_seed(0)
    logits = torch.randn(count, 3, *GRID.shape)
    labels = torch.rand(count, 3, *GRID.shape) < torch.tensor([0.5, 0.1, 0.0])[:, None, None]
    return logits, labels, torch.rand(count, *GRID.shape) < 0.6


@pytest.mark.parametrize("size", [1, 2, 5, 7])
def test_scores_do_not_depend_on_the_batches(size):
    whole, parts = (BEVConfusion("abc", GRID) for _ in range(2))
    whole.update(*some(7))
    for batch in zip(*(tensor.split(size) for tensor in some(7)), strict=True):
        parts.update(*batch)
    assert torch.equal(whole.counts, parts.counts) and whole.iou() == parts.iou() and parts.frames == 7


def test_a_class_that_does_not_exist_is_no_part_of_the_mean():
    scores = BEVConfusion("abc", GRID)
    scores.update(*some(2))
    assert list(scores.iou()) == ["a", "b"]
    assert scores.mean_iou() == pytest.approx(sum(scores.iou().values()) / 2)


def test_bands_add_up_to_the_whole():
    logits, labels, seen = some(2)
    scores = BEVConfusion("abc", GRID)
    scores.update(logits, labels, seen)
    hit = (logits.sigmoid() > 0.5) & labels & seen[:, None]
    assert scores.counts[0].sum() == hit.sum()
    near = GRID.depths() < 10
    assert scores.counts[0, 0].sum() == hit[:, :, torch.from_numpy(near)].sum()


def test_unseen_cells_do_not_count():
    logits, labels, seen = some(1)
    scores = BEVConfusion("abc", GRID)
    scores.update(logits, labels, seen & False)
    assert scores.counts.sum() == 0 and scores.mean_iou() == 0


def test_a_score_says_how_it_was_made():
    line = protocol("pon14", BEVGridConfig(), 6, "pon", lidar_mask=True, split="pon")
    assert line == "pon14/pon/0.25m/6cam/fov+lidar/thr0.5/pooled/split=pon"
