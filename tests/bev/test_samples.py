from dataclasses import replace

import pytest
import torch

from featherweight.bev.grid import BEVGridConfig
from featherweight.bev.image_processing_focusbev import FocusBEVImageProcessor
from featherweight.bev.samples import Samples, batch_of, is_continuous, memory_of, seen_with_past
from featherweight.errors import ConfigError


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


def test_a_picture_of_another_size_than_its_record_says_is_refused_for_its_k_would_be_wrong(index):
    kept = samples(index)
    kept.frames = [replace(index.frames[0], width=448, height=256)]
    with pytest.raises(ConfigError, match="224 x 128 pixels, its record says 448 x 256"):
        kept[0]
