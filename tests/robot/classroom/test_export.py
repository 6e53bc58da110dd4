"""What a class leaves behind."""

import zipfile

import pytest

from featherweight.errors import ConfigError
from featherweight.robot.classroom.board import Board
from featherweight.robot.classroom.export import export_class


def test_the_archive_holds_work_and_no_secret_and_nothing_is_overwritten(class_folder, tmp_path):
    score = {"points": 1, "placed": 0, "cubes": 3, "time_s": 9, "round_trip_ms": 3, "spectral_arc_length": -4}
    Board(class_folder / "board.json").enter("student01", score)
    log = class_folder / "students" / "student01" / "run_0001.jsonl"
    log.parent.mkdir(parents=True)
    log.write_text("{}\n")
    names = export_class(class_folder, tmp_path / "out.zip")
    assert names == ["board.csv", "students/student01/run_0001.jsonl"]
    text = b"".join(zipfile.ZipFile(tmp_path / "out.zip").read(name) for name in names)
    secret = (class_folder / "members" / "student01" / "token").read_bytes().strip()
    assert b"student01,1" in text and secret not in text and b"PRIVATE KEY" not in text

    with pytest.raises(ConfigError, match="is there already"):
        export_class(class_folder, tmp_path / "out.zip")
    with pytest.raises(ConfigError, match="no folder of a room"):
        export_class(tmp_path, tmp_path / "other.zip")
    with pytest.raises(ConfigError, match="cannot be written"):
        export_class(class_folder, tmp_path / "missing" / "out.zip")
