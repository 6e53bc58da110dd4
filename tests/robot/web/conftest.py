"""Pages of emulated kits."""

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
