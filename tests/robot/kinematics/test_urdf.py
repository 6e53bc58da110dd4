"""The second published model, and how far both agree."""

import numpy as np
import pytest
from robot_postures import PRINTED, random_angles

from featherweight.robot.kinematics import forward, forward_urdf

URDF_GOLDEN = [
    ((0, 0, 0, 0, 0), (0.149596, -0.003948, 0.167269)),
    ((10, 20, -30, 40, 50), (0.123526, 0.020271, 0.040016)),
    ((-45, 30, 60, -30, 15), (0.108318, -0.135612, 0.234398)),
    ((60, -20, 35, -70, 80), (0.025310, 0.065794, 0.291017)),
]


@pytest.mark.parametrize(("angles", "position"), URDF_GOLDEN)
def test_the_published_urdf_vectors_hold(angles, position):
    np.testing.assert_allclose(forward_urdf(np.radians(angles))[0], position, atol=PRINTED)


def test_both_published_models_agree_as_far_as_they_are_known_to():
    q = random_angles(1000)
    shifted, rotation = forward_urdf(q)
    shifted = shifted + 0.011255 * rotation[..., 2]
    ours = forward(q)[0]
    # The best rigid fit (Kabsch).
    a, b = shifted - shifted.mean(0), ours - ours.mean(0)
    u, _, vt = np.linalg.svd(b.T @ a)
    fit = vt.T @ np.diag([1, 1, np.sign(np.linalg.det(vt.T @ u.T))]) @ u.T
    errors_mm = 1e3 * np.linalg.norm(b @ fit.T - a, axis=1)

    # Known: 0.53 mm on average, 1.34 mm at most, over other random angles.
    assert errors_mm.mean() == pytest.approx(0.53, abs=0.05) and errors_mm.max() == pytest.approx(1.34, abs=0.15)
