"""`fw robot web`, in a process of its own."""

import json
import signal
import time
import urllib.request

import pytest
from robot_processes import start, stop

from featherweight.cli import run


def test_the_command_prints_an_address_that_a_browser_can_open_and_ends_with_ctrl_c():
    pytest.importorskip("websockets")
    server = start("web", "--follower", "umirobot", "--port", "sim", "--listen", "0", "--json")
    try:
        address, _, key = server.stdout.readline().strip().partition("#key=")
        assert len(key) >= 16 and address.startswith("http://127.0.0.1:")
        with urllib.request.urlopen(address, timeout=10) as page:
            assert b"EMERGENCY STOP" in page.read()
        server.send_signal(signal.SIGINT)
        out, errors = server.communicate(timeout=20)
        assert server.returncode == 0 and json.loads(out) == {} and errors == ""
    finally:
        stop([server])


def test_an_impairment_that_is_none_is_one_sentence(capsys):
    assert run(["robot", "web", "--follower", "umirobot", "--port", "sim", "--impair", "tokio-dhaka"]) == 2
    assert "Did you mean 'tokyo-dhaka'" in capsys.readouterr().err


@pytest.mark.slow
def test_a_page_drives_a_robot_of_a_room_on_another_machine(tmp_path):
    """Relay, robot and page in processes of their own, over TLS; the page without a browser."""
    from websockets.sync.client import connect

    pytest.importorskip("cryptography")
    room = str(tmp_path / "class")
    assert run(["robot", "class", "init", room, "--room", "lab1", "-m", "arm1:robot", "-m", "alice:operator"]) == 0
    started = []
    try:
        started.append(start("relay", "--class", room, "--port", "0"))
        address = started[0].stdout.readline().split()[1]
        common = ["--room", "lab1", "--class", room, "--relay", address]
        started.append(start("serve", *common, "--port", "sim"))
        assert "arm1 serves in lab1" in started[1].stdout.readline()
        started.append(start("web", *common, "--listen", "0", "--token", "key"))
        page = started[2].stdout.readline().partition("#")[0].replace("http:", "ws:") + "page"
        with connect(page, compression=None) as link:
            link.send('{"hello": "key"}')
            assert json.loads(link.recv(timeout=20))["room"] == "lab1"
            state, came, end_s = {}, 0.0, time.monotonic() + 20
            while state.get("q", [0])[0] < 5 and time.monotonic() < end_s:
                now = time.monotonic() * 1000
                beat = {"t": now, "e": state.get("t", 0), "h": now - came if came else 0, "s": state.get("s", 0)}
                # The first beats measure the clocks; an unknown age never counts.
                link.send(json.dumps(beat | ({"w": ["angles", [12, 0, 0, 0, 0, 0]]} if state.get("q") else {})))
                state = json.loads(link.recv(timeout=5))
                came = time.monotonic() * 1000
            assert state["q"][0] >= 5 and state["mine"] and state["by"] == "alice"
    finally:
        stop(started)
