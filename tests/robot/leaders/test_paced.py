"""A list that waits for the follower."""

import pytest

from featherweight.errors import DeviceError
from featherweight.robot.leaders.paced import PacedLeader


def test_the_list_is_played_only_while_the_follower_is_with_it():
    now_s = [0.0]
    leader = PacedLeader([(float(i),) * 6 for i in range(5)], 10.0, lambda: now_s[0])

    def at(time_s, is_active):
        now_s[0] = time_s
        leader.play(is_active)
        return leader.get_action()["gripper.pos"]

    with leader:
        assert [at(t, False) for t in (0.0, 1.0)] == [0.0, 0.0]
        assert [at(t, True) for t in (1.1, 1.2, 1.3)] == [0.0, 1.0, 2.0]
        assert [at(t, False) for t in (1.4, 9.0)] == [2.0, 2.0]
        assert [at(t, True) for t in (9.1, 9.2, 9.3, 9.4)] == [2.0, 3.0, 4.0, 4.0] and leader.is_finished
    with pytest.raises(DeviceError, match="is not connected"):
        leader.get_action()
