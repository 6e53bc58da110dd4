"""Names on the command line become leaders, followers and rooms, or one sentence."""

import threading

import pytest

from featherweight.cli.robot_devices import check_room, make_follower, make_leader, timer
from featherweight.errors import ConfigError


def test_names_become_devices():
    from featherweight import robot as fwr

    assert isinstance(make_leader("sine", "auto", None), fwr.ScriptedLeader)
    assert isinstance(make_follower("umirobot", "sim"), fwr.UMIRobot)


def test_unknown_names_and_other_rooms_are_refused_with_what_there_is():
    with pytest.raises(ConfigError, match="leader=pot is unknown; expected one of .*Did you mean 'pots'"):
        make_leader("pot", "auto", None)
    with pytest.raises(ConfigError, match="follower=umi is unknown"):
        make_follower("umi", "auto")
    with pytest.raises(ConfigError, match="leader=expert needs the simulator"):
        make_leader("expert", "auto", None)
    with pytest.raises(ConfigError, match="room=lab2 is not the room of these files; expected lab1"):
        check_room("lab2", "lab1")


def test_a_timer_ends_a_session():
    assert timer(0.01).wait(5)
    assert isinstance(timer(None), threading.Event) and not timer(None).is_set()
