"""Pictures of solids."""

import numpy as np

from featherweight.robot.hardware.pictures import Shown, draw, of_arm
from featherweight.robot.hardware.solids import box


def test_a_red_block_is_seen_in_the_middle(graphics):
    picture = draw([Shown(box((0, 20), (0, 20), (0, 20)), "0.9 0.1 0.1 1")], 120, 90, floor=False)
    red, green, _ = picture[45, 60].astype(int)
    assert picture.shape == (90, 120, 3) and red > 2 * green and np.all(picture[2, 2] > 200)


def test_what_stands_out_in_a_step_has_another_color(assembly):
    shown = of_arm(assembly, [0] * 6, frozenset({"base"}), bodies=2)
    assert len({one.color for one in shown}) == 3 and len(shown) == 4
