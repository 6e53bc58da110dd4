"""The judge's pre-flight, on ten kinds of faulty parts."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from featherweight.robot.hardware import check as check_module
from featherweight.robot.hardware import templates
from featherweight.robot.hardware.check import check, draw_faults
from featherweight.robot.hardware.dimensions import STANDARD, Dimensions
from featherweight.robot.hardware.gripper import build_gripper, front
from featherweight.robot.hardware.solids import box, cylinder, horn_holes, placed, servo_solid, triangles
from featherweight.robot.hardware.stl import stl_of

pytest.importorskip("trimesh")
BLOCK = box((0, 30), (0, 20), (0, 20)) - box((3, 27), (3, 17), (3, 21))


def stl(solid, change=lambda vertices, faces: (vertices, faces)):
    return stl_of(*change(*triangles(solid)))


def fins():
    return BLOCK + box((13, 13.3), (2, 18), (2, 20))


PARTS = {
    "open": stl(BLOCK, lambda v, f: (v, f[3:])),
    "inverted": stl(BLOCK, lambda v, f: (v, f[:, ::-1])),
    "thin wall": stl(fins()),
    "too large": stl(box((0, 260), (0, 230), (0, 5))),
    "floating piece": stl(BLOCK + box((40, 45), (0, 5), (0, 5))),
    "units": stl(BLOCK.scale([1 / 25.4] * 3)),
    "no mesh": b"this is a letter to my grandmother, and no mesh at all",
}


@pytest.mark.parametrize("name", PARTS)
def test_each_faulty_part_is_named(name, tmp_path):
    path = tmp_path / "part.stl"
    path.write_bytes(PARTS[name])

    result = check(path)

    # A wall in inches is thin, too, when it is taken for millimetres.
    assert name in result.names and set(result.names) <= {name, "thin wall"}
    text = next(fault.text for _, fault in result.faults if fault.name == name)
    assert text.endswith(".") and len(text) < 400


def wrong_horn(kit):
    plate = horn_holes(Dimensions().micro, 1.6, 14, 19, count=2)
    closed = kit.palm + (plate ^ cylinder("z", 9, 15, 18))
    return replace(kit, palm=closed - horn_holes(STANDARD, 3.2, 14, 19))


def wrong_servo(kit):
    pocket = servo_solid(Dimensions().micro, 0.3).scale([1.35, 1.4, 1.0])
    return replace(kit, palm=kit.palm - placed(pocket, kit.servo_pose))


def too_heavy(kit):
    weight = box((-9, 9), front(64, 98), (4, 95)) + box((9, 26), front(60, 98), (20, 95))
    return replace(kit, left=kit.left + weight, right=kit.right + weight.mirror([0, 0, 1]))


GRIPPERS = {
    "wrong horn": wrong_horn,
    "wrong servo": wrong_servo,
    "too heavy": too_heavy,
    "collides": lambda kit: replace(kit, palm=kit.palm + box((-9, 9), front(-30, 30), (-12, 15.5))),
    "fingers overlap": lambda kit: replace(kit, left=kit.left.translate([0, 0, -1])),
    "reach": lambda kit: replace(kit, left=kit.left + box((-9, 9), front(90, 110), (0, 4))),
    "travel": lambda kit: replace(kit, travel_mm_rad=2.0),
}


QUICK = {"wrong horn", "wrong servo", "too heavy", "collides"}


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in GRIPPERS])
def test_each_faulty_gripper_is_named(name, tmp_path, monkeypatch):
    path = tmp_path / "my_gripper.py"
    path.write_text("")
    monkeypatch.setattr(check_module, "load_gripper", lambda path, d: GRIPPERS[name](build_gripper(d)))

    assert name in check(path).names


def test_the_template_is_good():
    result = check(Path(templates.__file__).parent / "my_gripper.py")
    assert result.faults == [] and "opening, mm" in result.figures


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def build(dimensions):\n    return 1 / 0\n", "fails in line 2 (ZeroDivisionError"),
        ("def make(dimensions):\n    pass\n", "has no attribute 'build'"),
        ("def build(dimensions:\n", "fails in line 1"),
        ("def build(dimensions):\n    return 'box'\n", "builds a str"),
    ],
)
def test_a_file_that_fails_says_where(tmp_path, text, said):
    path = tmp_path / "my_gripper.py"
    path.write_text(text)
    result = check(path)
    assert result.names == ["fails"] and said in result.faults[0][1].text


def test_a_picture_shows_the_places_in_red(tmp_path, graphics):
    path = tmp_path / "part.stl"
    path.write_bytes(PARTS["open"])
    picture = draw_faults(check(path), 160, 120).astype(int)
    red = (picture[..., 0] > 120) & (picture[..., 1] < 80) & (picture[..., 2] < 80)
    assert picture.shape == (120, 160, 3) and red.sum() > 5 and np.ptp(picture) > 100
