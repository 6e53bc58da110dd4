"""What robots and leaders have in common."""

import pytest

from featherweight import robot as fwr
from featherweight.errors import ConfigError, DeviceError
from featherweight.robot.contract import keyed_angles, ordered_angles

ROBOTS = [lambda: fwr.UMIRobot(fwr.UMIRobotConfig(port="sim")), lambda: fwr.SimRobot(fwr.SimRobotConfig(scene="empty"))]
LEADERS = [
    lambda: fwr.ScriptedLeader(lambda t: (0,) * 6),
    fwr.KeyboardLeader,
    fwr.GamepadLeader,
    lambda: fwr.PotLeader(fwr.PotLeaderConfig(port="sim")),
]


@pytest.mark.parametrize("make", ROBOTS)
def test_a_robot_knows_its_features_before_it_is_connected_and_refuses_use(make):
    robot = make()
    assert set(robot.action_features) == set(fwr.JOINT_KEYS) <= set(robot.observation_features)
    assert not robot.is_connected
    with pytest.raises(DeviceError, match="is not connected; expected connect"):
        robot.get_observation()
    robot.disconnect()  # harmless
    robot.hold()


@pytest.mark.parametrize("make", LEADERS)
def test_a_leader_knows_its_features_before_it_is_connected_and_refuses_use(make):
    leader = make()
    assert set(leader.action_features) == set(fwr.JOINT_KEYS)
    assert not leader.is_connected
    with pytest.raises(DeviceError, match="is not connected; expected connect"):
        leader.get_action()
    leader.disconnect()


def test_angles_go_from_keys_to_the_order_of_the_wire_and_back():
    angles = (1.0, 2.0, 3.0, 4.0, 5.0, 6.0)
    assert ordered_angles("test", dict(reversed(keyed_angles(angles).items()))) == angles


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"elbow.pos": 1.0}, "key='elbow.pos' is unknown.*Did you mean 'elbow_flex.pos'"),
        ({"gripper.pos": None}, "gripper.pos=None is no angle"),
        ({"gripper.pos": float("inf")}, "gripper.pos=inf is no angle"),
        ({"gripper.pos": "3"}, "gripper.pos='3' is no angle"),
    ],
)
def test_an_action_that_is_none_is_one_sentence(change, message):
    with pytest.raises(ConfigError, match=message):
        ordered_angles("test", keyed_angles((0.0,) * 6) | change)
    with pytest.raises(ConfigError, match=r"shoulder_pan.pos is missing"):
        ordered_angles("test", {})
