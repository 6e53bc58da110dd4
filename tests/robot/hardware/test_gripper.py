"""The geared fingers."""

import numpy as np
import pytest

from featherweight.robot.hardware.solids import placed


def test_pinion_and_racks_mesh_without_touching_over_the_whole_stroke(assembly):
    gaps = []
    for grip in np.linspace(-90, 90, 13):
        poses = assembly.poses([0, 0, 0, 0, 0, grip])
        pinion, left, right, palm = (placed(assembly.bodies[i], poses[i]) for i in (6, 7, 8, 5))
        gaps += [pinion.min_gap(left, 2.0), pinion.min_gap(right, 2.0)]
        assert (left ^ palm).volume() == (right ^ palm).volume() == 0
    # Thinned teeth leave 0.19 mm; a turn in the wrong direction or a wrong pitch would leave none.
    assert 0.1 < min(gaps) and max(gaps) < 0.3


def test_fingers_touch_when_closed_and_open_to_fifty_millimetres(assembly):
    hand = assembly.gripper
    assert hand.left.min_gap(hand.right, 1.0) == pytest.approx(0, abs=1e-6)
    assert 2 * hand.travel_mm_rad * np.pi == pytest.approx(50.3, abs=0.1)
