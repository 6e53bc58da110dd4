"""Statistics of parts and of all."""

import numpy as np

from featherweight.robot.recording.statistics import describe_pictures, describe_rows, flatten, pool, unflatten


def test_pooled_statistics_are_those_of_all_rows():
    rows = np.random.default_rng(0).normal(3, [1, 5], (100, 2))
    pooled, whole = pool([describe_rows(rows[:30]), describe_rows(rows[30:])]), describe_rows(rows)
    for key in ("min", "max", "mean", "std", "count"):
        # Sums in another order: some units in the last place.
        np.testing.assert_allclose(pooled[key], whole[key], rtol=1e-12)
    assert np.abs(np.array(pooled["q50"]) - whole["q50"]).max() < 1


def test_pictures_are_described_per_channel_from_0_to_1():
    picture = np.zeros((4, 6, 3), dtype=np.uint8)
    picture[..., 1] = 255
    told = describe_pictures([picture, picture])
    assert np.array(told["mean"]).shape == (3, 1, 1) and told["mean"][1] == [[1.0]] and told["count"] == [2]
    assert unflatten(flatten({"observation.images.front": told})) == {"observation.images.front": told}
