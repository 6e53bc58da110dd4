"""The camera stand."""

from featherweight.robot.hardware.dimensions import Dimensions
from featherweight.robot.hardware.stand import HALF_POST, SOCKET, foot, post, sleeve, tray


def test_the_post_fits_foot_sleeve_and_tray_with_the_clearance():
    d = Dimensions()
    standing = post(d).rotate([0, -90, 0])
    x0, y0, z0, x1, y1, z1 = standing.bounding_box()
    standing = standing.translate([-(x0 + x1) / 2, -(y0 + y1) / 2, -z0])
    assert z1 - z0 == HALF_POST
    assert (standing.translate([0, 0, 5]) ^ foot(d)).volume() == 0
    assert (standing.translate([0, 0, SOCKET]) ^ sleeve(d)).volume() == 0
    assert (standing.translate([0, 0, 4]) ^ tray(d)).volume() == 0
    assert abs(standing.translate([0, 0, 5]).min_gap(foot(d), 2)) < d.clearance + 0.01
