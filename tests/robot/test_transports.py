"""The real transports on this computer: TLS, who may do what, reconnection, round trips."""

import json
import socket
import threading
import time

import pytest

from featherweight import robot as fwr
from featherweight.errors import ConfigError, DeviceError
from featherweight.robot.network import CommandFrame, Impaired, Impairment, InprocBroker, Topics
from featherweight.robot.network.connect import connect, find_membership
from featherweight.robot.network.follower_side import FollowerSide
from featherweight.robot.network.membership import Membership
from featherweight.robot.network.operator_side import join
from featherweight.robot.safety.mode import Mode

pytest.importorskip("cryptography")
MEMBERS = {"arm1": "robot", "alice": "operator", "bob": "operator", "teacher": "instructor", "eve": "observer"}
TOPICS = Topics("lab1", "arm1")
KINDS = ["websocket", "zenoh"]


@pytest.fixture(scope="module")
def rooms(tmp_path_factory):
    from featherweight.robot.network.certificates import create_room

    folder = tmp_path_factory.mktemp("rooms")
    return create_room(folder / "lab1", "lab1", MEMBERS), create_room(folder / "lab2", "lab2", MEMBERS)


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


@pytest.fixture(params=KINDS)
def room(request, rooms):
    room = Room(request.param, *rooms)
    yield room
    room.close()


def wait_for(condition, seconds=5.0):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.01)
    return False


def test_messages_arrive_where_the_roles_allow_and_nowhere_else(room):
    got = {name: [] for name in MEMBERS}
    members = {name: room.join(name) for name in ("arm1", "alice", "eve")}
    for name, transport in members.items():
        for topic in (TOPICS.cmd, TOPICS.ctl, TOPICS.instructor, TOPICS.state, TOPICS.camera("*")):
            transport.subscribe(topic, lambda topic, message, name=name: got[name].append((topic, message)))
    time.sleep(0.3)

    def send():
        members["alice"].publish(TOPICS.cmd, b"alice")
        members["eve"].publish(TOPICS.cmd, b"eve")
        members["eve"].publish(TOPICS.state, b"false state")
        members["alice"].publish(TOPICS.instructor, b"not an instructor")
        members["arm1"].publish(TOPICS.state, b"state")
        members["arm1"].publish(TOPICS.camera("front"), b"picture")
        time.sleep(0.05)
        return (TOPICS.camera("front"), b"picture") in got["eve"] and (TOPICS.cmd, b"alice") in got["arm1"]

    assert wait_for(send)
    time.sleep(0.2)
    seen = {(TOPICS.state, b"state"), (TOPICS.camera("front"), b"picture")}
    # zenoh gives a participant back what it published itself; that goes nowhere else.
    assert {(TOPICS.cmd, b"alice")} <= set(got["arm1"]) <= {(TOPICS.cmd, b"alice"), *seen}
    own = {"eve": {(TOPICS.cmd, b"eve"), (TOPICS.state, b"false state")}}
    own["alice"] = {(TOPICS.cmd, b"alice"), (TOPICS.instructor, b"not an instructor")}
    for name in ("eve", "alice"):
        assert seen <= set(got[name]) <= seen | own[name]


def test_who_has_no_certificate_of_the_room_cannot_connect(room):
    with pytest.raises(DeviceError, match="files that fw robot class init made for this room") as caught:
        connect(room.address, Membership.load(room.other / "members" / "alice"))
    assert "\n" not in str(caught.value)


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
    assert relay._clients == []
    for token in ("guessed", teacher.token):
        with pytest.raises(DeviceError, match="does not know this participant"):
            WebSocketTransport(relay.uri, Membership(alice.name, "instructor", "lab1", token, alice.folder))
    assert relay.refused >= 2
    relay.close()


def test_the_roster_names_who_is_there(room):
    arm, alice = room.join("arm1"), room.join("alice")
    arm.liveliness(TOPICS.alive("arm1"))
    alice.liveliness(TOPICS.alive("alice"))

    assert wait_for(lambda: alice.roster("fw/lab1/*/alive") == ["fw/lab1/alice/alive", "fw/lab1/arm1/alive"])
    assert alice.is_connected


def test_a_whole_session_moves_the_arm_and_a_second_operator_does_not(room):
    with fwr.UMIRobot(fwr.UMIRobotConfig(port="sim")) as robot:
        side = FollowerSide(robot, room.join("arm1"), TOPICS)
        stop, ends = threading.Event(), threading.Event()
        threads = [threading.Thread(target=side.run, args=(stop,))]
        alice, bob = room.join("alice"), room.join("bob")
        leaders = [
            fwr.ScriptedLeader(lambda t: (12.0, 0, 0, 0, 0, 0)),
            fwr.ScriptedLeader(lambda t: (-60.0, 0, 0, 0, 0, 0)),
        ]
        with leaders[0], leaders[1]:
            for transport, leader, name in ((alice, leaders[0], "alice"), (bob, leaders[1], "bob")):
                threads.append(
                    threading.Thread(target=join, args=(leader, transport, TOPICS, name), kwargs={"stop": ends})
                )
            for thread in threads:
                thread.start()
                time.sleep(0.8)
            moved = wait_for(lambda: robot.reported_deg()[0] == 12, 6)
            counters, status = dict(side.receiver.counters), side.status()
            ends.set()
            held = wait_for(lambda: side.controller.mode is Mode.HOLD, 1)
            stop.set()
            for thread in threads:
                thread.join()
    assert moved and held
    assert counters["accepted"] > 60 and counters["lease"] > 20 and status["holder"] == "alice"
    assert status["round_trip_ms_p50"] < 100


def test_nothing_readable_is_on_the_line(rooms):
    """A listener between participant and relay sees neither topics nor angles."""
    pytest.importorskip("websockets")
    from featherweight.robot.network.relay import Relay
    from featherweight.robot.network.websocket import WebSocketTransport

    relay = Relay(rooms[0]).start()
    target = int(relay.uri.rsplit(":", 1)[1])
    seen, sockets = bytearray(), []
    listener = socket.create_server(("127.0.0.1", 0))

    def pump(source, sink):
        try:
            while data := source.recv(65536):
                seen.extend(data)
                sink.sendall(data)
        except OSError:
            pass
        finally:
            sink.close()

    def listen():
        client = listener.accept()[0]
        upstream = socket.create_connection(("127.0.0.1", target))
        sockets.extend((client, upstream))
        for pair in ((client, upstream), (upstream, client)):
            threading.Thread(target=pump, args=pair, daemon=True).start()

    threading.Thread(target=listen, daemon=True).start()
    port = listener.getsockname()[1]
    transport = WebSocketTransport(f"wss://127.0.0.1:{port}", Membership.load(rooms[0] / "members" / "alice"))
    frame = CommandFrame(5, 1, 0, 0, 0, (12.5, -45.0, 30.0, 0.0, 60.0, -90.0)).encode()
    for _ in range(20):
        transport.publish(TOPICS.cmd, frame)
        time.sleep(0.02)
    transport.close()
    relay.close()
    for used in (listener, *sockets):
        used.close()

    assert len(seen) > 1000
    for secret in (b"FWT1", frame[44:68], TOPICS.cmd.encode(), transport._member.token.encode()):
        assert secret not in seen


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


def test_impaired_wraps_every_transport():
    broker = InprocBroker("lab1")
    got, arm = [], broker.join("arm1", "robot")
    arm.subscribe(TOPICS.cmd, lambda topic, message: got.append((time.monotonic(), message)))
    bad = Impaired(broker.join("alice", "operator"), Impairment(delay_s=0.05))
    start = time.monotonic()
    bad.publish(TOPICS.cmd, b"x")

    assert wait_for(lambda: got) and got[0][0] - start >= 0.05
    bad.close()
    assert not bad.is_connected


def test_a_room_s_folder_keeps_secrets_and_overwrites_nothing(rooms, tmp_path):
    from featherweight.robot.network.certificates import create_room

    folder = rooms[0]
    for secret in (folder / "ca.key", folder / "members" / "alice" / "key.pem", folder / "members" / "alice" / "token"):
        assert secret.stat().st_mode & 0o077 == 0
    assert (folder / "members" / "alice" / "token").read_text().strip() not in (folder / "relay.json").read_text()
    assert json.loads((folder / "relay.json").read_text())["room"] == "lab1"
    (tmp_path / "mine").write_text("x")
    with pytest.raises(ConfigError, match="is not empty"):
        create_room(tmp_path, "lab1", MEMBERS)
    with pytest.raises(ConfigError, match="member=eve:king is not allowed"):
        create_room(tmp_path / "new", "lab1", {"eve": "king"})
    assert not (tmp_path / "new").exists()


def test_memberships_and_addresses_are_checked(rooms, tmp_path):
    assert find_membership(rooms[0], None, "robot").name == "arm1"
    assert find_membership(rooms[0] / "members" / "eve", None, "operator").name == "eve"
    with pytest.raises(ConfigError, match="has 2 members that fit"):
        find_membership(rooms[0], None, "operator")
    with pytest.raises(ConfigError, match="is no folder of a participant"):
        Membership.load(tmp_path)
    with pytest.raises(ConfigError, match="Both are encrypted; there is no other"):
        connect("ws://127.0.0.1:1", find_membership(rooms[0], "alice", "operator"))
    with pytest.raises(DeviceError, match="cannot be reached"):
        connect(f"wss://127.0.0.1:{free_port()}", find_membership(rooms[0], "alice", "operator"))


def test_a_relay_on_a_used_port_or_without_a_folder_is_one_sentence(rooms, tmp_path):
    pytest.importorskip("websockets")
    from featherweight.robot.network.relay import Relay

    with socket.create_server(("127.0.0.1", 0)) as used, pytest.raises(DeviceError, match="cannot listen"):
        Relay(rooms[0], port=used.getsockname()[1]).start()
    with pytest.raises(ConfigError, match="is no folder of a room"):
        Relay(tmp_path)
