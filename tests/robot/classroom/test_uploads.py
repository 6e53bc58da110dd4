"""What students hand in: announced, bounded, examined, kept by name; never a program, never in the place of another."""

import json
import threading

import pytest

from featherweight.robot.classroom.preflight import Verdict
from featherweight.robot.classroom.uploads import MAX_BYTES, MAX_VERSIONS, SILENT_S, Uploads


@pytest.fixture
def uploads(tmp_path, clock):
    found = []

    def check(path):
        found.append(path.read_bytes())
        return Verdict(path.read_bytes().startswith(b"solid"), f"{path}: {path.stem} is too thin.")

    uploads = Uploads(tmp_path, clock, check)
    uploads.found = found
    yield uploads
    uploads.close()


def hand_in(uploads, student="student01", slot="gripper", name="mine.STL", data=b"solid part"):
    uploads.begin(student, {"slot": slot, "name": name, "bytes": len(data)})
    for i in range(0, len(data), 4):
        uploads.add(student, data[i : i + 4])
    for work in list(uploads._running.values()):
        work.exception(10)
    uploads.look()
    return uploads.told(student).get(slot)


def kept(tmp_path, student="student01"):
    return sorted(path.name for path in (tmp_path / "students" / student / "uploads").iterdir())


def test_a_good_part_is_kept_under_its_student_and_the_next_one_beside_it(uploads, tmp_path):
    assert hand_in(uploads)["state"] == "good"
    assert hand_in(uploads, data=b"solid other")["state"] == "good"
    assert hand_in(uploads, "student02", "master")["state"] == "good"
    assert kept(tmp_path) == [
        "gripper-001.stl", "gripper-001.stl.report.json", "gripper-002.stl", "gripper-002.stl.report.json",
    ]  # fmt: skip
    folder = tmp_path / "students" / "student01" / "uploads"
    assert (folder / "gripper-001.stl").read_bytes() == b"solid part"
    assert json.loads((folder / "gripper-002.stl.report.json").read_text())["bytes"] == 11
    assert kept(tmp_path, "student02") == ["master-001.stl", "master-001.stl.report.json"]


def test_a_faulty_part_is_told_and_not_kept(uploads, tmp_path):
    assert hand_in(uploads, data=b"a letter") == {"state": "faulty", "text": "gripper.stl: gripper is too thin."}
    assert kept(tmp_path) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "mine.py"}, "name=mine.py is no .stl or .3mf or .json"),
        ({"name": "../../x.stl/"}, ""),
        ({"slot": "master", "name": "m.json"}, "name=m.json is no .stl or .3mf"),
        ({"bytes": MAX_BYTES + 1}, f"bytes={MAX_BYTES + 1} is not between 1 and {MAX_BYTES}"),
        ({"bytes": 0}, "bytes=0 is not between"),
        ({"bytes": "9"}, "bytes=9 is not between"),
        ({"bytes": True}, ""),
    ],
)
def test_what_must_not_come_is_refused_before_it_comes(uploads, tmp_path, change, message):
    request = {"slot": "gripper", "name": "mine.stl", "bytes": 8} | change
    uploads.begin("student01", request)
    told = uploads.told("student01")[request["slot"]]
    if message:
        assert told["state"] == "faulty" and message in told["text"]
        uploads.add("student01", b"solid 12")
        assert uploads.found == [] and not (tmp_path / "students").exists()
    else:  # harmless: names lead nowhere, and one byte is a size
        assert told["state"] == "coming"


def test_what_was_told_stays_as_it_was(uploads):
    before = uploads.told("student01")
    uploads.begin("student01", {"slot": "gripper", "name": "a.stl", "bytes": 4})
    coming = uploads.told("student01")
    hand_in(uploads)
    assert before == {} and coming["gripper"]["state"] == "coming"  # mutation: one table, so that pages see no change


def test_junk_and_pieces_that_nobody_announced_are_left(uploads):
    for junk in (None, [], {"slot": "arm"}, {}):
        uploads.begin("student01", junk)
    uploads.add("student01", b"solid")
    assert uploads.told("student01") == {} and uploads._running == {}


def test_more_than_announced_and_less_are_told(uploads, clock):
    uploads.begin("student01", {"slot": "gripper", "name": "a.stl", "bytes": 4})
    uploads.add("student01", b"12345")
    assert "more came than was announced" in uploads.told("student01")["gripper"]["text"]
    uploads.begin("student01", {"slot": "gripper", "name": "a.stl", "bytes": 4})
    clock.now_s += SILENT_S + 1
    uploads.look()
    assert "it broke off" in uploads.told("student01")["gripper"]["text"]


def test_one_file_is_examined_at_a_time_and_versions_have_an_end(tmp_path, clock):
    go = threading.Event()
    uploads = Uploads(tmp_path, clock, lambda path: Verdict(go.wait(10), ""))
    for _ in range(2):
        uploads.begin("student01", {"slot": "gripper", "name": "a.stl", "bytes": 4})
        uploads.add("student01", b"1234")
    assert "still being examined" in uploads.told("student01")["gripper"]["text"]
    go.set()
    uploads.close()
    uploads.look()
    assert uploads.told("student01")["gripper"]["state"] == "good"
    for i in range(2, MAX_VERSIONS + 1):
        (tmp_path / "students" / "student01" / "uploads" / f"gripper-{i:03d}.3mf").touch()
    uploads.begin("student01", {"slot": "gripper", "name": "a.stl", "bytes": 4})
    assert f"{MAX_VERSIONS} files are kept already" in uploads.told("student01")["gripper"]["text"]


def test_a_full_disk_is_told_and_nothing_is_left(uploads, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.replace", full)
    told = hand_in(uploads)
    assert told["state"] == "faulty" and "No space left on device" in told["text"]
    assert [name for name in kept(tmp_path) if name.endswith(".stl")] == []
