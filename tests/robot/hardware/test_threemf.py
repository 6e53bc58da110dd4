"""3MF as programs write it, and files that are made to hurt."""

import zipfile

import numpy as np
import pytest

from featherweight.errors import ConfigError
from featherweight.robot.hardware import threemf
from featherweight.robot.hardware.solids import box
from featherweight.robot.hardware.stl import threemf_bytes
from featherweight.robot.hardware.threemf import read_threemf

HEAD = '<model unit="{unit}" xmlns="http://schemas.microsoft.com/3dmanufacturing/core/2015/02"><resources>'
TRIANGLE = (
    '<object id="{id}"><mesh><vertices><vertex x="0" y="0" z="0"/><vertex x="1" y="0" z="0"/>'
    '<vertex x="0" y="2" z="0"/>'
    '</vertices><triangles><triangle v1="0" v2="1" v3="2"/></triangles></mesh></object>'
)


def write(path, model, more=()):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("3D/3dmodel.model", model)
        for name, text in more:
            archive.writestr(name, text)
    return path


def model(objects, build, unit="millimeter"):
    return f"{HEAD.format(unit=unit)}{objects}</resources><build>{build}</build></model>"


def test_what_the_kit_writes_is_read_back(tmp_path):
    (tmp_path / "kit.3mf").write_bytes(
        threemf_bytes([("a", box((1, 11), (2, 22), (3, 33))), ("b", box((0, 1), (0, 1), (0, 1)))])
    )
    corners, faces = read_threemf(tmp_path / "kit.3mf")
    assert len(faces) == 24 and faces.max() == len(corners) - 1
    assert corners.min(0).tolist() == [0, 0, 0] and corners.max(0).tolist() == [11, 22, 33]


def test_units_places_components_and_other_models_count(tmp_path):
    """As the Production Extension writes it: the build names an object whose component stands in another model."""
    other = HEAD.format(unit="inch") + TRIANGLE.format(id=7) + "</resources></model>"
    where = 'p:path="/3D/other.model" transform="1 0 0 0 1 0 0 0 1 10 0 0"'
    inner = f'<object id="1"><components><component objectid="7" {where}/>'
    turned = '<item objectid="1" transform="0 1 0 -1 0 0 0 0 1 0 0 5"/>'
    text = model(inner + "</components></object>", turned, "inch").replace("<model", '<model xmlns:p="x"', 1)
    corners, faces = read_threemf(write(tmp_path / "one.3mf", text, [("3D/other.model", other)]))
    # First 10 to the right, then a quarter turn and 5 up; all in inches.
    np.testing.assert_allclose(corners / 25.4, [[0, 10, 5], [0, 11, 5], [-2, 10, 5]])
    assert faces.tolist() == [[0, 1, 2]]


def test_a_small_file_that_inflates_to_much_is_refused_before_it_does(tmp_path, monkeypatch):
    monkeypatch.setattr(threemf, "MOST_BYTES", 1 << 20)
    with zipfile.ZipFile(tmp_path / "blank.3mf", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("3D/3dmodel.model", HEAD.format(unit="inch") + " " * (64 << 20))
    assert (tmp_path / "blank.3mf").stat().st_size < 100_000
    with pytest.raises(ConfigError, match="inflates to more than 1 MB"):
        read_threemf(tmp_path / "blank.3mf")


def nested(levels, width):
    """Objects that each consist of the one before, some times over, and the first of nothing."""
    parts = ['<object id="0"/>']
    for level in range(1, levels + 1):
        components = f'<component objectid="{level - 1}"/>' * width
        parts.append(f'<object id="{level}"><components>{components}</components></object>')
    return model("".join(parts), f'<item objectid="{levels}"/>')


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (model(TRIANGLE.format(id=1), '<item objectid="1"/>' * 30), "more than 20 triangles"),
        (model('<object id="1"><mesh><vertices>' + '<vertex x="0" y="0" z="0"/>' * 200, ""), "more than 20 triangles"),
        (nested(12, 10), "built too often"),
        (
            model('<object id="1"><components><component objectid="1"/></components></object>', '<item objectid="1"/>'),
            "built too often",
        ),
        ('<!DOCTYPE a [<!ENTITY b "c">]>' + model(TRIANGLE.format(id=1), ""), "a document type is no part"),
        (model(TRIANGLE.format(id=1).replace('v3="2"', 'v3="9"'), '<item objectid="1"/>'), "triangles without corners"),
        (model(TRIANGLE.format(id=1), '<item objectid="2"/>'), "object 2 is not there"),
        (model(TRIANGLE.format(id=1), '<item objectid="1" transform="1 2"/>'), "holds no twelve numbers"),
        (model(TRIANGLE.format(id=1), ""), "nothing is built"),
        (model("", "", "furlong"), "KeyError: 'furlong'"),
        ("<model>", "ExpatError"),
    ],
)
def test_what_is_no_solid_or_made_to_hurt_is_one_sentence(text, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        read_threemf(write(tmp_path / "bad.3mf", text), most_triangles=20)


def test_files_that_are_no_archives_are_one_sentence(tmp_path):
    (tmp_path / "a.3mf").write_bytes(b"PK no")
    write(tmp_path / "b.3mf", model(TRIANGLE.format(id=1) * 300, ""))
    (tmp_path / "c.3mf").write_bytes((tmp_path / "b.3mf").read_bytes().replace(b"x", b"y", 3))
    data = bytearray((tmp_path / "b.3mf").read_bytes())
    data[60:90] = bytes(30)
    (tmp_path / "d.3mf").write_bytes(data)
    with zipfile.ZipFile(tmp_path / "e.3mf", "w") as archive:
        archive.writestr("other", "")
    for name in ("a", "c", "d", "e", "nothing"):
        with pytest.raises(ConfigError, match=f"{name}.3mf is no 3MF"):
            read_threemf(tmp_path / f"{name}.3mf")
