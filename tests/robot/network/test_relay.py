"""The relay: who may connect, restarts, ports."""

import socket
import time

import pytest
from robot_rooms import TOPICS, wait_for

from featherweight.errors import ConfigError, DeviceError
from featherweight.robot.network.connect import connect
from featherweight.robot.network.membership import Membership

pytest.importorskip("cryptography")


def test_neither_a_token_nor_a_certificate_alone_opens_the_relay(rooms):
    """The right token without a certificate, the right certificate with a token of nobody, and with another's token."""
    pytest.importorskip("websockets")
    import ssl

    from websockets.exceptions import WebSocketException
    from websockets.sync.client import connect as open_socket

    from featherweight.robot.network.relay import Relay
    from featherweight.robot.network.websocket import WebSocketTransport

    alice, teacher = (Membership.load(rooms[0] / "members" / name) for name in ("alice", "teacher"))
    relay = Relay(rooms[0]).start()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(rooms[0] / "ca.pem")
    header = {"Authorization": f"Bearer {alice.token}"}
    with pytest.raises((OSError, EOFError, WebSocketException)):
        open_socket(f"{relay.uri}/lab1", ssl=context, additional_headers=header)
    assert relay.names == []
    for token in ("guessed", teacher.token):
        with pytest.raises(DeviceError, match="does not know this participant"):
            WebSocketTransport(relay.uri, Membership(alice.name, "instructor", "lab1", token, alice.folder))
    assert relay.refused >= 2
    relay.close()


def test_a_relay_that_restarts_is_found_again(rooms):
    pytest.importorskip("websockets")
    from featherweight.robot.network.relay import Relay

    relay = Relay(rooms[0]).start()
    address, port = relay.uri, int(relay.uri.rsplit(":", 1)[1])
    arm, alice = (connect(address, Membership.load(rooms[0] / "members" / name)) for name in ("arm1", "alice"))
    got = []
    arm.subscribe(TOPICS.cmd, lambda topic, message: got.append(message))
    relay.close()
    assert wait_for(lambda: not alice.is_connected)
    alice.publish(TOPICS.cmd, b"lost")

    relay = Relay(rooms[0], port=port).start()
    assert wait_for(lambda: alice.is_connected and arm.is_connected, 10)
    time.sleep(0.2)
    alice.publish(TOPICS.cmd, b"new")
    assert wait_for(lambda: got == [b"new"])
    for thing in (alice, arm, relay):
        thing.close()


def test_a_relay_on_a_used_port_or_without_a_folder_is_one_sentence(rooms, tmp_path):
    pytest.importorskip("websockets")
    from featherweight.robot.network.relay import Relay

    with socket.create_server(("127.0.0.1", 0)) as used, pytest.raises(DeviceError, match="cannot be used"):
        Relay(rooms[0], port=used.getsockname()[1]).start()
    with pytest.raises(ConfigError, match="is no folder of a room"):
        Relay(tmp_path)
