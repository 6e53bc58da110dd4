"""A policy leads through the pipeline, and is silent when it is too slow."""

import os
import signal
import time

import numpy as np
import pytest
from robot_camera import wait_for

from featherweight import robot as fwr
from featherweight.errors import ConfigError, DeviceError
from featherweight.robot.camera.source import CameraConfig
from featherweight.robot.contract import keyed_angles
from featherweight.robot.learning.bc import BCConfig, BCPolicy
from featherweight.robot.learning.policy import Seen
from featherweight.robot.learning.policy_leader import PolicyLeader, eyes_of_robot
from featherweight.robot.safety.mode import Mode
from featherweight.robot.teleoperation import run_loop
from featherweight.robot.virtual_robot import VirtualRobot


class Constant(BCPolicy):
    """Goes on from the state by 0, 1, 2, ... degrees; takes its time."""

    pause_s = 0.0

    def act(self, state_deg, seen):
        time.sleep(self.pause_s)
        return np.asarray(state_deg) + np.arange(self.config.chunk)[:, None]


def lead(leader, seconds):
    """Ask at 60 Hz in real time; return (whether there was an action) at each step."""
    found, end_s = [], time.monotonic() + seconds
    while time.monotonic() < end_s:
        leader.send_feedback(keyed_angles((0.0,) * 6))
        found.append(leader.get_action() is not None)
        time.sleep(1 / 60)
    return found


def test_a_policy_in_place_answers_at_once_and_the_same_each_time():
    now_s = [0.0]
    policy = Constant(BCConfig(chunk=4, hidden=8, layers=1))
    with PolicyLeader(policy, Seen, lambda: now_s[0], in_thread=False) as leader:
        assert leader.get_action() is None  # it does not know where the arm is
        leader.send_feedback(keyed_angles((5.0,) * 6))
        assert leader.get_action()["gripper.pos"] == 5.0
        now_s[0] = 1 / 30
        # Two chunks, from 5 degrees each: the older one says 6, the newer one 5.
        assert 5.0 < leader.get_action()["gripper.pos"] < 6.0


def test_a_policy_that_is_too_slow_gives_no_action_beyond_its_chunk():
    policy = Constant(BCConfig(chunk=10, hidden=8, layers=1))
    with PolicyLeader(policy, Seen) as leader:
        assert any(lead(leader, 0.3))
        policy.pause_s = 1.2
        found = lead(leader, 0.9)
        assert found[0] and not any(found[-10:])  # the last chunk is over after a third of a second


def test_what_a_policy_lacks_is_said_where_its_action_is_asked_for_and_the_arm_is_held():
    with PolicyLeader(BCPolicy(BCConfig(chunk=10, hidden=8, layers=1)), Seen) as leader:
        with pytest.raises(ConfigError, match="scene=None; expected where cube and bin are"):
            lead(leader, 1.0)


def test_a_policy_that_carries_out_several_actions_is_asked_that_rarely():
    now_s, asked = [0.0], []
    policy = Constant(BCConfig(chunk=4, hidden=8, layers=1))
    policy.ask_every, policy.decay = 3, None
    with PolicyLeader(policy, lambda: asked.append(now_s[0]) or Seen(), lambda: now_s[0], in_thread=False) as leader:
        leader.send_feedback(keyed_angles((5.0,) * 6))
        angles = []
        for i in range(7):
            now_s[0] = i / 30
            angles.append(leader.get_action()["gripper.pos"])
    assert asked == [0.0, 3 / 30, 6 / 30] and angles == [5, 6, 7, 5, 6, 7, 5]


def test_an_arm_whose_policy_sees_nothing_is_held_and_the_reason_is_told():
    arm = VirtualRobot()
    arm.sleep(0.1)
    leader = PolicyLeader(BCPolicy(BCConfig(hidden=8, layers=1)), Seen, lambda: arm.now_s, in_thread=False)
    with leader:
        result = run_loop(leader, arm, 60.0, None, 1.0, None, lambda: arm.now_s, arm.sleep)
    assert result.mode is not Mode.ACTIVE and result.counters["faulty leader"] > 10 and arm.reported_deg() == (0.0,) * 6


class Seeing(Constant):
    """Sees one camera, whose picture it needs."""

    def act(self, state_deg, seen):
        assert seen.pictures["front"].shape == (48, 64, 3)
        return super().act(state_deg, seen)


def test_a_policy_whose_camera_is_lost_gives_no_action_until_the_camera_is_back():
    cameras = {"front": CameraConfig(source="test", width_px=64, height_px=48)}
    policy, said, given = Seeing(BCConfig(chunk=200, hidden=8, layers=1, cameras=["front"])), [], []
    with fwr.UMIRobot(fwr.UMIRobotConfig(port="sim:seeing", cameras=cameras)) as robot:
        camera = robot._live["front"]
        with PolicyLeader(policy, eyes_of_robot(policy, robot)) as leader:

            def ask():
                leader.send_feedback(keyed_angles((0.0,) * 6))
                time.sleep(0.01)
                try:
                    return leader.get_action()
                except DeviceError as error:
                    said.append(str(error))
                    return None

            assert wait_for(ask)
            os.kill(camera.pid, signal.SIGKILL)
            assert wait_for(lambda: ask() is None and said)
            # Chunks of more than six seconds would have gone on.
            while camera.fresh() is None:
                action = ask()
                given.append(action is not None and camera.fresh() is None)
            assert wait_for(ask, 20)
    assert "policy: camera front gives no picture" in said[0] and "held until one comes" in said[0]
    assert given and not any(given)


def test_a_robot_without_the_cameras_of_a_policy_is_refused_before_it_moves():
    policy = Constant(BCConfig(hidden=8, layers=1, cameras=["front"]))
    with fwr.UMIRobot(fwr.UMIRobotConfig(port="sim:blind")) as robot:
        with pytest.raises(ConfigError, match="camera=front is not there; expected .*none.*--camera front="):
            eyes_of_robot(policy, robot)
        with pytest.raises(ConfigError, match="has to be told where cube and bin are"):
            eyes_of_robot(Constant(BCConfig(hidden=8, layers=1)), robot)
