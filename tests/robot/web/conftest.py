"""A page of an emulated kit, and a browser where there is one."""

import importlib.util
import shutil

import pytest
from robot_web import TOKEN


@pytest.fixture
def page_server():
    """Starts servers of emulated kits; see `start`."""
    pytest.importorskip("websockets")
    from featherweight import robot as fwr
    from featherweight.robot.web.rooms import LocalRoom
    from featherweight.robot.web.server import WebServer

    opened = []

    def start(robot=None, **options):
        robot = robot or fwr.UMIRobot(fwr.UMIRobotConfig(port=f"sim:{len(opened)}"))
        robot.connect()
        room = LocalRoom(robot, TOKEN, **options)
        server = WebServer({"": room}).start()
        opened.append((server, room, robot))
        return server, robot

    yield start
    for server, room, robot in opened:
        server.close()
        room.close()
        robot.disconnect()


@pytest.fixture(scope="session")
def chromium():
    """A headless Chromium, or a skip that names the install lines."""
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if importlib.util.find_spec("playwright") is None or program is None:
        pytest.skip("no browser; run pip install playwright, and apt-get install -y chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # Without a sandbox, because tests may run as root, for whom Chromium has none.
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()
