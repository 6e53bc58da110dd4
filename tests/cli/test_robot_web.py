"""`fw robot web`, in a process of its own."""

import json
import signal
import urllib.request

import pytest
from robot_processes import start

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
        server.kill()
        server.communicate()


def test_an_impairment_that_is_none_is_one_sentence(capsys):
    assert run(["robot", "web", "--follower", "umirobot", "--port", "sim", "--impair", "tokio-dhaka"]) == 2
    assert "Did you mean 'tokyo-dhaka'" in capsys.readouterr().err
