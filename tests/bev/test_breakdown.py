import numpy as np
import pytest
import torch

from featherweight.bev.breakdown import THRESHOLDS, Breakdown
from featherweight.bev.grid import BEVGridConfig
from featherweight.bev.labels import make_labels

GRID = BEVGridConfig(resolution=0.5, anchor="center")


@pytest.fixture(scope="module")
def truth(index):
    frames = index.frames[:3]
    pairs = [index.classes.split_bits(make_labels(index, frame, GRID)) for frame in frames]
    labels, seen = (torch.from_numpy(np.stack(part)) for part in zip(*pairs, strict=True))
    return frames, labels, seen


def test_the_truth_itself_is_found_at_every_visibility_threshold_and_without_mask(index, truth):
    frames, labels, seen = truth
    counted = Breakdown(index, frames, GRID, "exact")
    counted.update(torch.where(labels, 30.0, -30.0), labels, seen)
    result = counted.to_dict()
    assert result["without_mask"]["miou"] == 1 and result["best_threshold_not_comparable"]["miou"] == 1
    assert max(result["calibration_error"].values()) < 1e-6
    found = {value for level in result["recall_by_visibility"].values() for value in level.values()}
    assert found == {1.0} and len(result["recall_by_visibility"]["80-100 %"]) > 0
    assert result["by_condition"] == {"day": {"frames": 3, "miou": 1.0}}


def test_objects_are_counted_at_their_visibility_and_nothing_else_is(index, truth):
    frames, labels, seen = truth
    counted = Breakdown(index, frames, GRID, "exact")
    counted.update(torch.full_like(labels, -30.0, dtype=torch.float32), labels, seen)
    objects = labels[:, 4:] & seen[:, None]
    total = counted.found[1, :, 4:].sum()
    assert objects.sum() <= total <= 1.05 * objects.sum(), "two of a class in one cell count twice"
    assert counted.found[0].sum() == 0


def test_the_best_threshold_is_where_the_classes_part(index, truth):
    frames, labels, seen = truth
    probability = torch.where(labels, 0.35, 0.15)
    counted = Breakdown(index, frames, GRID, "exact")
    counted.update(torch.logit(probability), labels, seen)
    assert set(counted.best_thresholds().values()) == {(0.2, 1.0)} and 0.2 in THRESHOLDS
    road = labels[:, 0][seen].double().mean()
    expected = 0.65 * road + 0.15 * (1 - road)
    assert counted.calibration_error()["drivable_area"] == pytest.approx(float(expected), rel=1e-5)
