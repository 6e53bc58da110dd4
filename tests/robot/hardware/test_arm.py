"""Base and links."""

import numpy as np

from featherweight.robot.hardware.arm import servo_places


def test_every_servo_stands_with_its_shaft_on_the_axis_of_its_joint(assembly):
    poses = assembly.poses([11, 22, 33, 44, 55, 0])
    for number, (body, pose) in enumerate(servo_places(assembly.dimensions), start=1):
        shaft = poses[body] @ pose
        axis, origin = poses[number][:3, 2], poses[number][:3, 3]
        assert np.allclose(np.abs(shaft[:3, 2] @ axis), 1)
        # The axis of the joint goes through the shaft: what lies across it is zero.
        offset = shaft[:3, 3] - origin
        assert np.allclose(np.cross(offset, axis), 0, atol=1e-9), number


def test_no_servo_shares_volume_with_a_printed_part_but_the_pinion_that_it_turns(assembly):
    from featherweight.robot.hardware.solids import placed

    poses = assembly.poses([0] * 6)
    pieces = [(piece, placed(piece.solid, poses[piece.body])) for piece in assembly.pieces]
    touching = {
        (servo.name, part.name)
        for servo, a in pieces
        for part, b in pieces
        if not servo.is_printed and part.is_printed and (a ^ b).volume() > 0.5
    }
    assert touching == {("servo_6", "pinion")}
