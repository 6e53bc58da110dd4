"""The keyboard as a leader."""

import io
import time

import pytest

from featherweight import robot as fwr
from featherweight.errors import DeviceError
from featherweight.robot.contract import keyed_angles


def test_keys_move_stop_and_reset():
    leader = fwr.KeyboardLeader(source=io.StringIO(""))
    leader.connect()
    assert leader.get_action() is None
    leader.send_feedback(keyed_angles([5] * 6))
    leader.get_action()

    for _ in range(10):
        leader.press("a")
        time.sleep(0.01)
        action = leader.get_action()
    assert action["shoulder_pan.pos"] > 6 and action["elbow_flex.pos"] == 5
    leader.press(" ")
    leader.press("c")
    leader.press("?")
    assert leader.poll_events() == ("stop", "reset") and leader.poll_events() == ()
    leader.press("\x1b")
    assert leader.is_left
    leader.disconnect()


def test_a_keyboard_without_a_terminal_is_one_sentence(monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    with pytest.raises(DeviceError, match="stdin is no terminal"):
        fwr.KeyboardLeader().connect()
