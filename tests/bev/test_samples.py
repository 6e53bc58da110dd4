import math

import numpy as np
import pytest
import torch

from featherweight.bev.grid import BEVGridConfig
from featherweight.bev.image_processing_focusbev import FocusBEVImageProcessor
from featherweight.bev.samples import Samples, batch_of, is_continuous, memory_of, mirrored, seen_with_past, tilted


def samples(index, anchor="center", mode="exact"):
    grid = BEVGridConfig(resolution=0.5, anchor=anchor)
    features = BEVGridConfig(resolution=1.0, anchor="center")
    return Samples(index, index.frames, FocusBEVImageProcessor((128, 224)), grid, features, mode)


def test_a_sample_is_made_once_and_kept(index):
    kept = samples(index)
    assert kept[3] is kept[3] and len(kept) == 40
    assert kept[3].labels.shape == (14, 98, 100) and kept[3].pixels.shape == (3, 128, 224)


def test_the_past_ends_where_a_drive_begins(index):
    kept = samples(index)
    assert kept.past(2, 3) == [1, 0] and kept.past(4, 3) == [] and kept.past(7, 2) == [6, 5]
    assert is_continuous(index.frames[0], index.frames[1]) and not is_continuous(index.frames[1], index.frames[0])


@pytest.mark.parametrize("anchor", ["center", "corner"])
def test_the_mirrored_sample_is_that_of_the_mirrored_world(index, anchor):
    sample = samples(index, anchor, "exact" if anchor == "center" else "pon")[5]
    grid = BEVGridConfig(resolution=0.5, anchor=anchor)
    twice = mirrored(mirrored(sample, grid), grid)
    assert np.array_equal(twice.pixels, sample.pixels)
    np.testing.assert_allclose(twice.intrinsics, sample.intrinsics)
    np.testing.assert_allclose(twice.camera_to_world, sample.camera_to_world)
    inner = slice(1, -1)
    assert np.array_equal(twice.labels[:, :, inner], sample.labels[:, :, inner])
    flipped = mirrored(sample, grid)
    column = 30
    partner = grid.columns - column - (1 if anchor == "center" else 0)
    assert np.array_equal(flipped.labels[:, :, column], sample.labels[:, :, partner])
    assert grid.laterals()[column] == pytest.approx(-grid.laterals()[partner])
    # A proper camera again, as high as before, that looks as far down.
    assert np.linalg.det(flipped.camera_to_ego[:3, :3]) == pytest.approx(1)
    assert flipped.camera_to_ego[2, 3] == sample.camera_to_ego[2, 3]
    assert flipped.camera_to_ego[2, 2] == pytest.approx(sample.camera_to_ego[2, 2])


def test_a_tilted_picture_moves_up_by_the_focal_length_times_the_angle(index):
    sample = samples(index)[5]
    angle = math.radians(1.5)
    moved = tilted(sample, angle, 0.0)
    rows = sample.intrinsics[1, 1] * math.tan(angle)
    middle = sample.pixels[:, 60:100, 100:124].astype(float)
    candidates = [
        np.abs(moved.pixels[:, 60 - shift : 100 - shift, 100:124] - middle).mean() for shift in range(-10, 11)
    ]
    assert np.argmin(candidates) - 10 == round(rows)
    assert moved.tilt == (pytest.approx(angle), 0.0)


def test_pixels_that_tell_about_the_ground_lie_below_the_horizon(index):
    sample = samples(index)[5]
    horizon = int(sample.intrinsics[1, 2])
    assert not sample.relevance[: horizon - 2].any() and 0.1 < sample.relevance[horizon + 10 :].mean()


def test_a_memory_is_stacked_newest_first_and_says_what_is_missing(index):
    kept = samples(index)
    batch = batch_of([kept[2], kept[4]]) | memory_of([kept[2], kept[4]], [[kept[1], kept[0]], []], 3, kept.grid)
    assert batch["past_pixels"].shape == (2, 3, 3, 128, 224)
    assert batch["valid"].tolist() == [[True, True, False], [False, False, False]]
    torch.testing.assert_close(batch["age"][0, :2], torch.tensor([0.5, 1.0]), atol=1e-4, rtol=0)
    assert torch.equal(batch["past_pixels"][0, 1], torch.from_numpy(kept[0].pixels))
    torch.testing.assert_close(batch["motion"][1], torch.eye(3).expand(3, 3, 3), atol=1e-4, rtol=0)
    assert batch["motion"][0, 0, 1, 2] > 1, "the past camera sees the same place farther away"


def test_what_the_past_saw_counts_as_seen(index):
    kept = samples(index)
    union = seen_with_past(kept[3], [kept[2], kept[1], kept[0]], kept.grid)
    assert (union >= kept[3].seen).all() and union.sum() > 1.05 * kept[3].seen.sum()
