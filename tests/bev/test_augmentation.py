import math
from dataclasses import replace

import numpy as np
import pytest

from featherweight.bev.augmentation import displaced, mirrored, tilted, zoomed
from featherweight.bev.geometry import ground_motion, project
from featherweight.bev.grid import BEVGridConfig
from featherweight.bev.image_processing_focusbev import FocusBEVImageProcessor
from featherweight.bev.samples import Samples

FEATURES = BEVGridConfig(resolution=1.0, anchor="center")


def samples(index, anchor="center", mode="exact"):
    grid = BEVGridConfig(resolution=0.5, anchor=anchor)
    return Samples(index, index.frames, FocusBEVImageProcessor((128, 224)), grid, FEATURES, mode)


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


@pytest.mark.parametrize("angles", [(0.03, 0.0), (-0.03, 0.02), (0.0, -0.05)])
def test_no_edge_of_a_tilted_picture_tells_the_tilt(index, angles):
    """A network would read a black edge instead of the horizon, and be lost where cameras are tilted in truth."""
    sample = samples(index)[5]
    gray = replace(sample, pixels=np.full_like(sample.pixels, 90))
    assert (tilted(gray, *angles).pixels == 90).all()


@pytest.mark.parametrize("factor", [0.8, 1.25])
def test_a_zoomed_picture_shows_the_ground_where_its_intrinsics_say(index, factor):
    kept = samples(index)
    sample = kept[5]
    changed = zoomed(sample, factor, kept.grid, FEATURES)
    points = np.array([[0.5, 1.5, 12], [-3, 1.5, 20], [4, 1.0, 30], [1, -1, 25]])
    before, after = (np.floor(project(points, one.intrinsics)).astype(int) for one in (sample, changed))
    for (u, v), (x, y) in zip(before, after, strict=True):
        here, there = sample.pixels[:, v - 1 : v + 2, u - 1 : u + 2], changed.pixels[:, y - 1 : y + 2, x - 1 : x + 2]
        assert abs(here.mean() - there.mean()) < 20
    assert changed.intrinsics[0, 0] == pytest.approx(factor * sample.intrinsics[0, 0])
    if factor > 1:
        assert changed.seen.sum() < sample.seen.sum(), "less is in view"
    else:
        assert np.array_equal(changed.seen, sample.seen), "what is padded was not seen before"


def test_a_zoom_of_one_changes_nothing(index):
    kept = samples(index)
    same = zoomed(kept[5], 1.0, kept.grid, FEATURES)
    for name in ("pixels", "relevance", "intrinsics", "seen", "in_view"):
        assert np.array_equal(getattr(same, name), getattr(kept[5], name)), name


def test_a_displaced_pose_is_a_little_wrong_and_stays_a_pose(index):
    sample = samples(index)[5]
    moved = [displaced(sample, np.random.default_rng(seed)).camera_to_world for seed in range(300)]
    away = np.array([pose[:2, 3] - sample.camera_to_world[:2, 3] for pose in moved])
    assert away.std() == pytest.approx(0.1, rel=0.1) and abs(away.mean()) < 0.02
    motion = np.array([ground_motion(pose, sample.camera_to_world) for pose in moved])
    assert np.degrees(motion[:, 0, 1].std()) == pytest.approx(0.3, rel=0.15)
    assert np.linalg.det(moved[0][:3, :3]) == pytest.approx(1)
