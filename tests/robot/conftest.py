"""What the tests of the robot share."""

import importlib.util

import pytest


@pytest.fixture(autouse=True)
def robot_home(tmp_path, monkeypatch):
    """Calibration files of tests never touch the user's."""
    monkeypatch.setenv("FEATHERWEIGHT_ROBOT_HOME", str(tmp_path / "robot"))
    return tmp_path / "robot"


@pytest.fixture(scope="session")
def graphics():
    """Off-screen pictures, or a skip that names the install line."""
    if importlib.util.find_spec("mujoco") is None:  # not imported: that would be without graphics that work
        pytest.skip("mujoco is not installed")
    from featherweight.robot.sim.graphics import INSTALL_GRAPHICS, working_graphics

    if working_graphics() is None:
        pytest.skip(f"no off-screen graphics here; run {INSTALL_GRAPHICS}")
    return working_graphics()


@pytest.fixture
def kit():
    """An emulated kit that boots quickly."""
    from featherweight import robot as fwr

    return fwr.EmulatedKit(boot_s=0.05)


@pytest.fixture(scope="session")
def expert_demos(tmp_path_factory):
    """A data set of four demonstrations of the expert, without pictures."""
    from featherweight.robot.recording.demonstrations import demonstrate, expert_writer

    root = tmp_path_factory.mktemp("expert") / "demos"
    assert demonstrate(expert_writer(root), range(4)) == 4
    return root
