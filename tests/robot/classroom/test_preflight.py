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
    from featherweight.robot.hardware.stl import stl_of, threemf_bytes

    vertices, faces = triangles(box((0, 30), (0, 20), (0, 10)))
    for name, data, is_good, text in (
        ("block", stl_of(vertices, faces), True, "overhang of block, mm2"),
        ("shell", stl_of(vertices, faces[2:]), False, "open: the surface has holes"),
        ("block", threemf_bytes([("block", box((0, 30), (0, 20), (0, 10)))]), True, "overhang of block, mm2"),
        ("letter", b"to my grandmother", False, "no mesh"),
    ):
        path = tmp_path / f"{name}.{'3mf' if data[:2] == b'PK' else 'stl'}"
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


def test_more_triangles_than_a_printer_shows_are_refused(tmp_path, capsys, monkeypatch):
    from featherweight.robot.hardware.solids import box, triangles
    from featherweight.robot.hardware.stl import stl_of, threemf_bytes

    monkeypatch.setattr(preflight, "MOST_TRIANGLES", 11)
    block = box((0, 30), (0, 20), (0, 10))
    (tmp_path / "block.stl").write_bytes(stl_of(*triangles(block)))
    (tmp_path / "block.3mf").write_bytes(threemf_bytes([("block", block)]))
    for name in ("block.stl", "block.3mf"):
        found = verdict(capsys, tmp_path / name, monkeypatch)
        assert not found.is_good and "expected at most" in found.text


@pytest.mark.slow
def test_three_megabytes_that_inflate_to_gigabytes_take_neither_memory_nor_time(tmp_path):
    import subprocess
    import sys
    import zipfile

    pytest.importorskip("resource")

    path, blank = tmp_path / "bomb.3mf", b" " * (1 << 20)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        with archive.open("3D/3dmodel.model", "w", force_zip64=True) as file:
            for _ in range(3 << 10):
                file.write(blank)
    assert path.stat().st_size < 4_000_000
    program = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_AS, (1 << 30,) * 2); "
        "from featherweight.robot.classroom import preflight; preflight._limit_memory = lambda: None; "
        "preflight.main(sys.argv[1:])"
    )
    done = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True)
    assert "inflates to more than 256 MB" in json.loads(done.stdout)["text"]
