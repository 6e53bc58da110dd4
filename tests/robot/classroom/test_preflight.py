"""The examiner of what students hand in."""

import json

import pytest

from featherweight.robot.classroom import preflight

pytest.importorskip("trimesh")
pytest.importorskip("manifold3d")


def verdict(capsys, path, monkeypatch):
    monkeypatch.setattr(preflight, "_limit_memory", lambda: None)  # of this process
    assert preflight.main([str(path)]) == 0
    return preflight.Verdict(**json.loads(capsys.readouterr().out))


def test_a_block_is_good_a_letter_and_an_open_shell_are_not(tmp_path, capsys, monkeypatch):
    from featherweight.robot.hardware.solids import box, triangles
    from featherweight.robot.hardware.stl import stl_of

    vertices, faces = triangles(box((0, 30), (0, 20), (0, 10)))
    for name, data, is_good, text in (
        ("block", stl_of(vertices, faces), True, "overhang of block, mm2"),
        ("shell", stl_of(vertices, faces[2:]), False, "open: the surface has holes"),
        ("letter", b"to my grandmother", False, "no mesh"),
    ):
        path = tmp_path / f"{name}.stl"
        path.write_bytes(data)
        found = verdict(capsys, path, monkeypatch)
        assert found.is_good is is_good and text in found.text


def test_dimensions_that_are_none_are_one_sentence(tmp_path, capsys, monkeypatch):
    path = tmp_path / "mine.json"
    path.write_text('{"gear_teeth": 400}')
    found = verdict(capsys, path, monkeypatch)
    assert not found.is_good and "gear_teeth" in found.text


@pytest.mark.slow
def test_a_process_of_its_own_examines_within_its_time(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text('{"clearance": 0.35}')
    found = preflight.examine(path)
    assert found.is_good and "opening, mm: 50" in found.text
    assert "took more than 0.01 s" in preflight.examine(path, 0.01).text
