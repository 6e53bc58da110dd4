"""Potentiometers as a leader."""

import time

import pytest

from featherweight import robot as fwr
from featherweight.robot.driver.link_state import LinkCore, LinkState, Received
from featherweight.robot.emulator.emulated_kit import EmulatedKit
from featherweight.robot.emulator.inputs import ConstantInputs, FloatingInputs
from featherweight.robot.protocol import Status


class FakeLine:
    """A link whose lines a test writes; only what PotLeader reads of SerialLink."""

    name = "fake"

    def __init__(self):
        self.core = LinkCore()
        self.core.state = LinkState.STREAMING
        self.newest, self.number = None, 0

    is_streaming = property(lambda self: self.core.state is LinkState.STREAMING)

    def say(self, pots):
        self.number += 1
        self.newest = Received(Status((0,) * 6, tuple(pots), (1,) * 5), time.monotonic(), self.number)


def test_pots_become_angles_and_anything_doubtful_becomes_nothing():
    link = FakeLine()
    leader = fwr.PotLeader(link=link)
    leader.connect()
    assert leader.get_action() is None  # no line yet

    for _ in range(10):
        link.say([0, 1023, 512, 256, 768, 512])
        action = leader.get_action()
    assert [round(angle) for angle in action.values()] == [-90, 90, 0, -45, 45, 0]

    floating = FloatingInputs()
    for _ in range(30):
        link.say(floating.read(0)[0])
        action = leader.get_action()
    assert action is None and leader.floating == [0, 1, 2, 3, 4, 5]

    for _ in range(60):
        link.say([512] * 6)
        action = leader.get_action()
    assert action is not None and leader.floating == []
    link.core.state = LinkState.LOST
    assert leader.get_action() is None


def test_recentring_makes_the_present_pose_zero():
    link = FakeLine()
    leader = fwr.PotLeader(link=link)
    leader.connect()
    for _ in range(10):
        link.say([600, 400, 512, 512, 512, 512])
        leader.get_action()

    leader.recenter()

    assert list(leader.get_action().values()) == pytest.approx([0] * 6, abs=0.2)


def test_a_leader_and_a_follower_share_one_board():
    kit = EmulatedKit(ConstantInputs((600, 512, 512, 512, 512, 512)), boot_s=0.05)
    with fwr.PseudoTerminal(kit) as terminal:
        follower = fwr.UMIRobot(fwr.UMIRobotConfig(port=terminal.path))
        leader = fwr.PotLeader(fwr.PotLeaderConfig(port=terminal.path))
        with follower, leader:
            assert follower.link is leader._link
            result = fwr.teleoperate(leader, follower, duration_s=1.5)
            assert follower.reported_deg()[0] == pytest.approx(15.6, abs=1.1)
    assert result.mode is fwr.Mode.ACTIVE and result.counters == {}
