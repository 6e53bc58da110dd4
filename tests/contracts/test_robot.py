"""What every robot and every leader has to do, whichever it is."""

import io
import time

import numpy as np
import pytest

from featherweight import robot as fwr
from featherweight.errors import DeviceError
from featherweight.robot.contract import keyed_angles
from featherweight.robot.kit import JOINT_KEYS

ROBOTS = {
    "UMIRobot": lambda: fwr.UMIRobot(fwr.UMIRobotConfig(port="sim")),
    "SimRobot": lambda: fwr.SimRobot(fwr.SimRobotConfig(scene="empty")),
}
LEADERS = {
    "PotLeader": lambda: fwr.PotLeader(fwr.PotLeaderConfig(port="sim")),
    "KeyboardLeader": lambda: fwr.KeyboardLeader(source=io.StringIO("")),
    "ScriptedLeader": lambda: fwr.ScriptedLeader(lambda t: (0.0,) * 6),
}


@pytest.fixture(params=ROBOTS)
def robot(request, tmp_path, monkeypatch):
    monkeypatch.setenv("FEATHERWEIGHT_ROBOT_HOME", str(tmp_path))
    if request.param == "SimRobot":
        pytest.importorskip("mujoco")
    return ROBOTS[request.param]()


@pytest.fixture(params=LEADERS)
def leader(request, tmp_path, monkeypatch):
    monkeypatch.setenv("FEATHERWEIGHT_ROBOT_HOME", str(tmp_path))
    return LEADERS[request.param]()


def test_a_robot_tells_its_features_before_and_does_nothing_without_a_connection(robot):
    assert set(JOINT_KEYS) <= set(robot.observation_features) and set(robot.action_features) == set(JOINT_KEYS)
    assert not robot.is_connected
    for call in (robot.get_observation, lambda: robot.send_action(dict.fromkeys(JOINT_KEYS, 0.0))):
        with pytest.raises(DeviceError, match="is not connected"):
            call()
    robot.hold()
    robot.disconnect()


def test_a_robot_observes_what_it_promised_and_returns_what_was_sent(robot):
    with robot:
        assert robot.is_connected and robot.is_calibrated
        robot.connect()  # twice is fine
        observation = robot.get_observation()
        assert set(observation) == set(robot.observation_features)
        sent = robot.send_action({**{key: observation[key] for key in JOINT_KEYS}, "shoulder_pan.pos": 300.0})
        assert sent["shoulder_pan.pos"] == 90.0
        time.sleep(0.3)
        assert robot.get_observation()["shoulder_pan.pos"] > 0
        robot.hold()
        time.sleep(0.15)
        held = robot.get_observation()["shoulder_pan.pos"]
        time.sleep(0.2)
        assert robot.get_observation()["shoulder_pan.pos"] == held
    assert not robot.is_connected


def test_a_leader_gives_finite_actions_for_all_joints_or_none(leader):
    assert set(leader.action_features) == set(JOINT_KEYS)
    with pytest.raises(DeviceError, match="is not connected"):
        leader.get_action()
    with leader:
        assert leader.is_connected
        leader.send_feedback(keyed_angles([0.0] * 6))
        for _ in range(20):
            action = leader.get_action()
            assert action is None or (list(action) == list(JOINT_KEYS) and np.isfinite(list(action.values())).all())
            time.sleep(0.01)
        assert action is not None and leader.poll_events() == ()
    leader.disconnect()
