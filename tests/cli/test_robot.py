"""`fw robot`: every mistake on the command line is one sentence."""

import io

import pytest

from featherweight.cli import run


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
