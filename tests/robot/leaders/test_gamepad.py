"""The gamepad as a leader."""

import pytest

from featherweight import robot as fwr
from featherweight.errors import DeviceError
from featherweight.robot.contract import keyed_angles
from featherweight.robot.leaders.gamepad import _EVENT


def test_a_gamepad_moves_only_while_the_button_is_held():
    leader = fwr.GamepadLeader()
    leader.send_feedback(keyed_angles([10] * 6))
    leader.take(_EVENT.pack(0, -32767, 2, 0))
    assert leader.action_at(0.0) is None

    leader.take(_EVENT.pack(0, 1, 1, 4))
    angles = [leader.action_at(i / 60)["shoulder_pan.pos"] for i in range(1, 31)]
    assert 10 < angles[5] < angles[-1] and angles[-1] == pytest.approx(10 + 60 * 0.48, abs=3)
    leader.take(_EVENT.pack(0, 0, 1, 4))
    assert leader.action_at(0.6) is None
    leader.take(_EVENT.pack(0, 1, 1, 1))
    assert leader.poll_events() == ("stop",)


def test_a_missing_gamepad_is_one_sentence(tmp_path):
    leader = fwr.GamepadLeader(fwr.GamepadLeaderConfig(device=str(tmp_path / "js0")))
    with pytest.raises(DeviceError, match="js0 cannot be opened"):
        leader.connect()
