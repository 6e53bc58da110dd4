"""`fw robot` on the command line, in processes of its own where time matters."""

import io
import json
import os
import subprocess
import sys
import time

import pytest

from featherweight.cli import run


def start(*arguments, **environment):
    return subprocess.Popen(
        [sys.executable, "-m", "featherweight", "robot", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1", **environment},
    )


def test_three_processes_make_a_session_over_tls(tmp_path):
    pytest.importorskip("websockets")
    pytest.importorskip("cryptography")
    room = str(tmp_path / "class")
    assert run(["robot", "class", "init", room, "--room", "lab1", "-m", "arm1:robot", "-m", "alice:operator"]) == 0
    common = ["--room", "lab1", "--class", room]
    relay = start("relay", "--class", room, "--port", "0", "--duration", "30")
    try:
        address = relay.stdout.readline().split()[1]
        robot = start("serve", *common, "--relay", address, "--port", "sim", "--duration", "12", "--json")
        assert "arm1 serves in lab1" in robot.stdout.readline()
        alice = start("join", *common, "--relay", address, "--leader", "sine", "--duration", "4", "--json")
        out, errors = alice.communicate(timeout=60)
        assert alice.returncode == 0, errors
        result = json.loads(out)
        assert result["has_driven"] and result["status"]["accepted"] > 60
        assert 0 < result["round_trip_ms"]["p50"] < 200
        out, errors = robot.communicate(timeout=60)
        status = json.loads(out)
        assert robot.returncode == 0 and status["accepted"] > 60 and status["mode"] == "HOLD"
    finally:
        for process in (relay,):
            process.terminate()
            process.communicate()


@pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals")
def test_an_emulated_kit_is_driven_by_another_process(tmp_path):
    link = str(tmp_path / "kit")
    kit = start("emulate", "--pty", link, "--boot", "0.1", "--inputs", "sine", "--duration", "15")
    try:
        assert kit.stdout.readline().strip() == link
        teleop = start("teleop", "--leader", "pots", "--port", link, "--duration", "3", "--json")
        out, errors = teleop.communicate(timeout=60)
        assert teleop.returncode == 0, errors
        result = json.loads(out)
        assert result["mode"] in ("SYNC", "ACTIVE") and result["steps"] > 100
        assert "pots is not calibrated; run fw robot calibrate" in errors
    finally:
        kit.terminate()
        kit.communicate()


def test_the_simulator_runs_without_display_and_window(capsys):
    pytest.importorskip("mujoco")

    assert run(["robot", "sim", "--leader", "sine", "--duration", "1", "--no-viewer", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["steps"] > 30


def test_ports_and_doctor_print_json(capsys, monkeypatch):
    monkeypatch.setattr("featherweight.robot.doctor.list_ports", list)
    assert run(["robot", "ports", "--json"]) == 0
    assert "ports" in json.loads(capsys.readouterr().out)
    assert run(["robot", "doctor", "--port", "sim", "--real", "--json"]) == 0
    titles = [section["title"] for section in json.loads(capsys.readouterr().out)["sections"]]
    assert titles == ["Computer", "Packages", "Graphics", "Serial ports", "Kit on sim", "Checklist"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["teleop", "--port", "/dev/ttyNONE", "--leader", "sine"], "ttyNONE is not there"),
        (["teleop", "--port", "sim", "--leader", "keybord"], "Did you mean 'keyboard'"),
        (["teleop", "--follower", "sims"], "Did you mean 'sim'"),
        (["teleop", "--port", "sim", "--leader", "keyboard"], "stdin is no terminal"),
        (["teleop", "--port", "sim", "--leader", "expert"], "needs the simulator"),
        (["sim", "--scene", "chalenge"], "scene"),
        (["emulate", "--inputs", "sinus"], "Did you mean 'sine'"),
        (["emulate", "--fault", "bitflip=0.1"], "Did you mean 'bit_flip'"),
        (["emulate", "--fault", "bit_flip=2"], "out of range"),
        (["calibrate", "--channels", "7", "--port", "sim"], "expected 1 to 6"),
        (["calibrate", "--channels", "1", "--port", "sim", "--seconds", "0.5"], "moved by 0.00 V"),
        (["relay", "--class", "/nowhere"], "is no folder of a room"),
        (["relay", "--transport", "carrier"], "expected one of websocket, zenoh"),
        (["serve", "--room", "lab1", "--class", "/nowhere"], "expected one of nobody"),
        (["class", "init", "/tmp", "--room", "lab1"], "is not empty"),
        (["class", "init", "new", "-m", "eve:king"], "eve:king is not allowed"),
    ],
)
def test_every_mistake_is_one_sentence(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", io.StringIO(""))

    code = run(["robot", *arguments])

    errors = capsys.readouterr().err.strip()
    assert code in (1, 2)
    assert message in " ".join(errors.split()) and "Traceback" not in errors


def test_the_film_of_a_simulation_is_written(tmp_path):
    pytest.importorskip("mujoco")
    from featherweight.robot.sim.graphics import INSTALL_GRAPHICS, working_graphics

    if working_graphics() is None:
        pytest.skip(f"no off-screen graphics here; run {INSTALL_GRAPHICS}")
    path = tmp_path / "film.gif"

    assert run(["robot", "sim", "--leader", "sine", "--duration", "1.5", "--no-viewer", "--gif", str(path)]) == 0

    from PIL import Image

    with Image.open(path) as film:
        assert film.n_frames >= 5 and film.size == (320, 240)


def test_files_of_another_room_are_refused(tmp_path, capsys):
    pytest.importorskip("cryptography")
    room = str(tmp_path / "class")
    assert run(["robot", "class", "init", room, "--room", "lab2"]) == 0

    assert run(["robot", "join", "--room", "lab1", "--class", room, "--leader", "sine"]) == 2
    assert "room=lab1 is not the room of these files; expected lab2" in " ".join(capsys.readouterr().err.split())


def test_an_interrupted_emulator_ends_cleanly(tmp_path):
    import signal

    if sys.platform == "win32":
        pytest.skip("pseudo-terminals")
    kit = start("emulate")
    kit.stdout.readline()
    time.sleep(0.2)
    kit.send_signal(signal.SIGINT)
    out, errors = kit.communicate(timeout=30)

    assert kit.returncode == 0 and "commands accepted 0" in out and "Traceback" not in errors
