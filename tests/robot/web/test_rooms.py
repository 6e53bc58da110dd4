"""Where pages come from."""

import asyncio

import pytest

from featherweight import robot as fwr
from featherweight.errors import DeviceError
from featherweight.robot.network.inproc import InprocBroker
from featherweight.robot.web.rooms import LocalRoom, RemoteRoom


def test_one_token_admits_and_every_page_has_a_name_of_its_own():
    with fwr.UMIRobot(fwr.UMIRobotConfig(port="sim")) as robot:
        room = LocalRoom(robot, "key")
        names = {room.admit("key").name, room.admit("key").name}
        assert len(names) == 2 and room.admit("no") is None and room.admit("schlüssel") is None
        assert room.robots(room.admit("key")) == ["arm1"]
        room.close()


def test_pages_of_a_network_room_have_the_role_of_its_member():
    broker = InprocBroker("lab1")
    room = RemoteRoom("lab1", "arm2", "eve", "observer", "key", lambda: broker.join("eve", "observer"))
    visitor = room.admit("key")
    assert (
        visitor.name == "eve"
        and visitor.role == "observer"
        and not visitor.may_drive
        and room.robots(visitor) == ["arm2"]
    )
    assert asyncio.run(room.join(visitor)).role == "observer"

    def fail():
        raise DeviceError("robot: relay=x cannot be reached; expected one. Start it.")

    with pytest.raises(DeviceError):
        asyncio.run(RemoteRoom("lab1", "arm2", "alice", "operator", "key", fail).join(visitor))
