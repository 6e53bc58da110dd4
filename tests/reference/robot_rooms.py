"""Rooms with relays for tests of transports."""

import socket
import time

import pytest

from featherweight.robot.network import Topics
from featherweight.robot.network.connect import connect
from featherweight.robot.network.membership import Membership

MEMBERS = {"arm1": "robot", "alice": "operator", "bob": "operator", "teacher": "instructor", "eve": "observer"}


TOPICS = Topics("lab1", "arm1")


KINDS = ["websocket", "zenoh"]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Room:
    def __init__(self, kind, folder, other):
        self.folder, self.other, self.kind, self.open = folder, other, kind, []
        if kind == "websocket":
            pytest.importorskip("websockets")
            from featherweight.robot.network.relay import Relay

            self.relay = Relay(folder).start()
            self.address = self.relay.uri
        else:
            pytest.importorskip("zenoh")
            from featherweight.robot.network.zenoh import ZenohRelay

            self.address = f"tls/127.0.0.1:{free_port()}"
            self.relay = ZenohRelay(folder, self.address)

    def join(self, name):
        transport = connect(self.address, Membership.load(self.folder / "members" / name))
        self.open.append(transport)
        return transport

    def close(self):
        for transport in self.open:
            transport.close()
        self.relay.close()


def wait_for(condition, seconds=5.0):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.01)
    return False
