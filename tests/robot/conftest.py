"""What the tests of the robot share."""

import importlib.util
import shutil
from pathlib import Path

import pytest


class Clock:
    """Time that passes when a test says so."""

    now_s = 100.0

    def __call__(self):
        return self.now_s


@pytest.fixture
def clock():
    """A clock that a test moves on by `now_s`."""
    return Clock()


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


@pytest.fixture(scope="module")  # not longer: Playwright keeps an event loop in this thread, and other tests run theirs
def chromium():
    """A headless Chromium, or a skip that names the install lines."""
    programs = map(shutil.which, ("chromium", "chromium-headless-shell", "google-chrome"))
    program = next(filter(None, programs), None)
    if importlib.util.find_spec("playwright") is None or program is None:
        pytest.skip("no browser; run pip install playwright, and apt-get install -y chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # Without a sandbox, because tests may run as root, for whom Chromium has none.
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def find_violations():
    """Returns what axe-core finds on a page, or skips with the install line."""
    found = importlib.util.find_spec("axe_playwright_python")
    if found is None:
        pytest.skip("axe is not here; run pip install axe-playwright-python")
    axe = Path(found.submodule_search_locations[0], "axe.min.js").read_text(encoding="utf-8")

    def find(page):
        page.evaluate(axe)
        violations = page.evaluate("axe.run().then((result) => result.violations)")
        return [(one["impact"], one["id"], [node["html"] for node in one["nodes"]]) for one in violations]

    return find
