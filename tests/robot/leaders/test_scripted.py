"""Scripts as leaders."""

import time

import pytest

from featherweight import robot as fwr
from featherweight.errors import DeviceError


def test_scripts_follow_time_or_a_list():
    with fwr.ScriptedLeader([[1] * 6, [2] * 6, [3] * 6], rate_hz=1000) as leader:
        time.sleep(0.02)
        assert leader.get_action()["gripper.pos"] == 3 and leader.is_finished
    with pytest.raises(DeviceError, match="is not connected"):
        leader.get_action()
