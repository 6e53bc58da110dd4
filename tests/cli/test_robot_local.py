"""`fw robot sim|emulate|teleop`."""

import json
import sys
import time

import pytest
from robot_processes import start

from featherweight.cli import run


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
