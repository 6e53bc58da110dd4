"""From an address and a folder to a transport."""

import pytest
from robot_rooms import free_port

from featherweight.errors import ConfigError, DeviceError
from featherweight.robot.network.connect import connect, find_membership

pytest.importorskip("cryptography")


def test_addresses_and_members_are_chosen_and_checked(rooms):
    assert find_membership(rooms[0], None, "robot").name == "arm1"
    assert find_membership(rooms[0] / "members" / "eve", None, "operator").name == "eve"
    with pytest.raises(ConfigError, match="has 2 members that fit"):
        find_membership(rooms[0], None, "operator")
    with pytest.raises(ConfigError, match="Both are encrypted; there is no other"):
        connect("ws://127.0.0.1:1", find_membership(rooms[0], "alice", "operator"))
    with pytest.raises(DeviceError, match="cannot be reached"):
        connect(f"wss://127.0.0.1:{free_port()}", find_membership(rooms[0], "alice", "operator"))
