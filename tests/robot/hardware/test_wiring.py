"""The wiring diagram."""

import xml.etree.ElementTree as ElementTree

from featherweight.robot.hardware.wiring import POT_PINS, SERVO_PINS, wiring_svg


def test_the_diagram_names_every_pin_and_joint_and_stays_inside_its_frame():
    root = ElementTree.fromstring(wiring_svg())
    words = " ".join(element.text or "" for element in root.iter())
    assert all(f"pin {pin}" in words for pin in SERVO_PINS) and all(pin in words for pin in POT_PINS)
    assert "shoulder_pan" in words and "gripper" in words
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    for line in root.iter("{http://www.w3.org/2000/svg}polyline"):
        points = [tuple(map(float, pair.split(","))) for pair in line.attrib["points"].split()]
        assert all(0 <= x <= width and 0 <= y <= height for x, y in points)
