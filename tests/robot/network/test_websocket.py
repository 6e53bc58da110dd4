"""What a listener on the line can read."""

import socket
import threading
import time

import pytest
from robot_rooms import TOPICS, wait_for

from featherweight.errors import DeviceError
from featherweight.robot.network import CommandFrame
from featherweight.robot.network.membership import Membership

pytest.importorskip("cryptography")


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


def test_one_thread_alone_reads_and_writes_the_socket(rooms):
    """Two threads in one TLS connection corrupt it: handshakes hung on a busy machine."""
    pytest.importorskip("websockets")
    from featherweight.robot.network.relay import Relay
    from featherweight.robot.network.websocket import WebSocketTransport

    relay = Relay(rooms[0]).start()
    before, alice = set(threading.enumerate()), Membership.load(rooms[0] / "members" / "alice")
    mine = []
    transport = WebSocketTransport(relay.uri, alice)
    transport.subscribe(TOPICS.state, lambda topic, message: mine.append(threading.current_thread()))
    arm = WebSocketTransport(relay.uri, Membership.load(rooms[0] / "members" / "arm1"))
    assert wait_for(lambda: arm.publish(TOPICS.state, b"state") or mine)

    assert len(set(threading.enumerate()) - before) == 2, "one of each transport"
    assert set(mine) <= set(threading.enumerate()) - before
    for end in (transport, arm):
        end.close()
    assert set(threading.enumerate()) <= before
    relay.close()


def test_a_relay_that_says_nothing_ends_after_the_opening_time(rooms, monkeypatch):
    pytest.importorskip("websockets")
    from featherweight.robot.network import websocket

    monkeypatch.setattr(websocket, "OPEN_TIMEOUT_S", 0.3)
    before = set(threading.enumerate())
    with socket.create_server(("127.0.0.1", 0)) as silent:
        uri = f"wss://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(DeviceError, match=r"cannot be reached \(timed out"):
            websocket.WebSocketTransport(uri, Membership.load(rooms[0] / "members" / "alice"))
    assert wait_for(lambda: set(threading.enumerate()) <= before)
