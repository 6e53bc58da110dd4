"""The page's server, spoken to without a browser."""

import contextlib
import json
import socket
import time
import urllib.error
import urllib.request

import pytest
from robot_web import TOKEN

from featherweight.errors import DeviceError
from featherweight.robot.web.server import parse

pytest.importorskip("websockets")


@pytest.fixture
def visit():
    from websockets.sync.client import connect

    with contextlib.ExitStack() as links:

        def open_one(server, hello=None, **headers):
            address = f"ws://127.0.0.1:{server.port}/page"
            link = links.enter_context(connect(address, additional_headers=headers, compression=None))
            link.send(hello if isinstance(hello, str) else json.dumps(hello or {"hello": TOKEN}))
            return link

        yield open_one


def tell(link, seconds, wish=None):
    """Beat as a page does; return the newest state."""
    echo, came, end_s, state = 0, 0, time.monotonic() + seconds, {}
    while time.monotonic() < end_s:
        now = time.monotonic() * 1000
        message = {"t": now, "e": echo, "h": now - came if came else 0, "s": state.get("s", 0)}
        link.send(json.dumps(message | ({"w": ["angles", wish]} if wish else {})))
        try:
            while True:
                state = json.loads(link.recv(timeout=0.03))
                echo, came = state["t"], time.monotonic() * 1000
        except TimeoutError:
            pass
    return state


def test_a_page_drives_the_arm_and_a_cut_line_holds_it(page_server, visit):
    server, robot = page_server()
    link = visit(server)
    welcome = json.loads(link.recv(timeout=5))
    assert welcome["role"] == "operator" and welcome["robots"] == ["arm1"]
    assert tell(link, 0.6)["mode"] == "IDLE"
    state = tell(link, 1.0, [20, 0, 0, 0, 0, 0])
    assert state["mine"] and state["mode"] in ("SYNC", "ACTIVE") and robot.reported_deg()[0] > 5

    link.socket.shutdown(socket.SHUT_RDWR)
    time.sleep(0.25)
    stopped = robot.reported_deg()
    time.sleep(0.3)
    assert robot.reported_deg() == stopped


def test_what_is_no_page_of_ours_is_refused(page_server, visit):
    from websockets.exceptions import ConnectionClosed, InvalidStatus

    server, robot = page_server()
    wrong = visit(server, {"hello": "guessed"})
    assert json.loads(wrong.recv(timeout=5))["error"] == "token"
    with pytest.raises(ConnectionClosed):
        wrong.recv(timeout=5)
    with pytest.raises(InvalidStatus):
        visit(server, Origin="http://evil.example")
    missing = visit(server, {"hello": TOKEN, "robot": "arm9"})
    assert json.loads(missing.recv(timeout=5))["error"] == "robot"
    for junk in ("{", "[]", '{"hello": "\\ud800"}'):
        with pytest.raises(ConnectionClosed):
            stranger = visit(server, junk)
            stranger.recv(timeout=5)
            stranger.recv(timeout=5)
    for path in ("no.js", "../server.py", "lab1/"):
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(server.uri + path, timeout=5)

    with urllib.request.urlopen(server.uri, timeout=5) as page:
        assert page.status == 200 and b"<main" in page.read()
    link = visit(server)
    link.recv(timeout=5)
    for junk in ("{", "[]", '{"t": "x"}', b"\x00", "[" * 2000):
        link.send(junk)
    assert tell(link, 0.3)["q"] == [0.0] * 6
    assert server.counters["malformed"] == 8 and server.counters["wrong token"] == 1
    assert server.counters["foreign"] == 1


def test_a_used_port_is_one_sentence(page_server):
    from featherweight.robot.web.server import WebServer

    with socket.create_server(("127.0.0.1", 0)) as used, pytest.raises(DeviceError, match="cannot be used"):
        WebServer({}, port=used.getsockname()[1]).start()


def test_messages_are_objects():
    assert parse('{"a": 1}') == {"a": 1}
