"""`fw robot relay|serve|join|class init`, in processes of their own."""

import json

import pytest
from robot_processes import start, stop

from featherweight.cli import run


def test_three_processes_make_a_session_over_tls(tmp_path):
    pytest.importorskip("websockets")
    pytest.importorskip("cryptography")
    room = str(tmp_path / "class")
    assert run(["robot", "class", "init", room, "--room", "lab1", "-m", "arm1:robot", "-m", "alice:operator"]) == 0
    common = ["--room", "lab1", "--class", room]
    started = [start("relay", "--class", room, "--port", "0", "--duration", "90")]
    try:
        address = started[0].stdout.readline().split()[1]
        started.append(start("serve", *common, "--relay", address, "--port", "sim", "--duration", "12", "--json"))
        assert "arm1 serves in lab1" in started[1].stdout.readline()
        started.append(start("join", *common, "--relay", address, "--leader", "sine", "--duration", "4", "--json"))
        _, robot, alice = started
        out, errors = alice.communicate(timeout=60)
        assert alice.returncode == 0, errors
        result = json.loads(out)
        assert result["has_driven"] and result["status"]["accepted"] > 60
        assert 0 < result["round_trip_ms"]["p50"] < 200
        out, errors = robot.communicate(timeout=60)
        status = json.loads(out)
        assert robot.returncode == 0 and status["accepted"] > 60 and status["mode"] == "HOLD"
    finally:
        stop(started)


def test_files_of_another_room_are_refused(tmp_path, capsys):
    pytest.importorskip("cryptography")
    room = str(tmp_path / "class")
    assert run(["robot", "class", "init", room, "--room", "lab2"]) == 0

    assert run(["robot", "join", "--room", "lab1", "--class", room, "--leader", "sine"]) == 2
    assert "room=lab1 is not the room of these files; expected lab2" in " ".join(capsys.readouterr().err.split())
