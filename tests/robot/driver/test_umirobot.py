"""The robot on a pseudo-terminal: life cycle, cable, wrong actions."""

import os
import signal
import sys
import time

import pytest

from featherweight import robot as fwr
from featherweight.errors import ConfigError, DeviceError
from featherweight.robot.camera.source import CameraConfig
from featherweight.robot.driver.link_state import LinkState
from featherweight.robot.kit import JOINT_KEYS

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals")


def wait_for(condition, seconds=5.0):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.005)
    return False


def test_a_robot_connects_moves_and_leaves_the_arm_frozen(kit):
    with fwr.PseudoTerminal(kit) as terminal:
        robot = fwr.UMIRobot(fwr.UMIRobotConfig(port=terminal.path, sync_speed_deg_s=90))
        assert set(robot.action_features) == set(robot.observation_features) == set(JOINT_KEYS)
        with robot:
            assert robot.state is LinkState.STREAMING
            sent = robot.send_action(dict(zip(JOINT_KEYS, [10, -20, 30, -40, 95, -95], strict=True)))
            assert list(sent.values()) == [10, -20, 30, -40, 90, -90]
            assert wait_for(lambda: robot.reported_deg() == (10, -20, 30, -40, 90, -90), 15)
            assert wait_for(lambda: robot.statistics.lines_per_s >= 75, 15) and robot.statistics.bad_lines == 0
            assert kit.firmware.counts.rejected == 0
        assert not robot.is_connected and robot.state is LinkState.CLOSED
        robot.disconnect()
        with pytest.raises(DeviceError, match="is not connected; expected connect"):
            robot.get_observation()


def test_an_unplugged_robot_says_so_and_comes_back_frozen(kit, tmp_path):
    with fwr.PseudoTerminal(kit, link=str(tmp_path / "kit")) as terminal:
        with fwr.UMIRobot(fwr.UMIRobotConfig(port=terminal.path)) as robot:
            robot.send_action(dict.fromkeys(JOINT_KEYS, 20.0))
            time.sleep(0.3)
            epoch = robot.epoch

            terminal.unplug()
            assert wait_for(lambda: robot.state in (LinkState.LOST, LinkState.OPENING), 1)
            with pytest.raises(DeviceError, match="The arm is frozen and the driver keeps trying"):
                robot.get_observation()

            terminal.replug()
            assert wait_for(lambda: robot.state is LinkState.STREAMING, 8)
            assert robot.epoch > epoch and robot.statistics.reconnects == 1
            time.sleep(0.3)
            assert robot.reported_deg() == (0,) * 6, "the goal of before must not be obeyed"


@pytest.mark.parametrize(
    "action", [dict.fromkeys(JOINT_KEYS, float("nan")), {"gripper": 1.0}, {}, dict.fromkeys(JOINT_KEYS, "1")]
)
def test_a_wrong_action_is_one_sentence_and_freezes_the_arm(action):
    with fwr.UMIRobot(fwr.UMIRobotConfig(port="sim", sync_speed_deg_s=90)) as robot:
        robot.send_action(dict.fromkeys(JOINT_KEYS, 40.0))
        time.sleep(0.2)
        with pytest.raises(ConfigError, match="UMIRobot.send_action: "):
            robot.send_action(action)
        time.sleep(0.2)
        settled = robot.reported_deg()
        time.sleep(0.2)
        assert robot.reported_deg() == settled and settled[0] < 30


def test_gripper_percent_ranges_and_relative_limits():
    config = fwr.UMIRobotConfig(port="sim", gripper_unit="percent", max_relative_target=10)
    with fwr.UMIRobot(config) as robot:
        assert robot.get_observation()["gripper.pos"] == 50
        sent = robot.send_action({**dict.fromkeys(JOINT_KEYS, 90.0), "gripper.pos": 52.0})
        assert sent["shoulder_pan.pos"] == 10 and sent["gripper.pos"] == pytest.approx(52)


def test_cameras_beside_the_kit_give_pictures_until_they_are_lost_and_the_arm_is_told_nothing():
    cameras = {"front": CameraConfig(source="test", width_px=64, height_px=48)}
    robot = fwr.UMIRobot(fwr.UMIRobotConfig(port="sim", cameras=cameras))
    assert robot.observation_features["front"] == (48, 64, 3)  # known before connecting, as it was chosen
    with robot:
        observation = robot.get_observation()
        assert observation["front"].shape == (48, 64, 3) and robot.camera_troubles() == {}
        os.kill(robot._live["front"].pid, signal.SIGKILL)
        assert wait_for(lambda: "front" not in robot.get_observation())
        assert "front" in robot.camera_troubles() and robot.is_streaming
        assert wait_for(lambda: "front" in robot.get_observation())
        process = robot._live["front"]._process
    assert process.poll() is not None and robot.pictures() == {}


def test_a_camera_that_is_not_there_leaves_nothing_open():
    cameras = {"front": CameraConfig(source="test"), "side": CameraConfig(source="/dev/video97")}
    robot = fwr.UMIRobot(fwr.UMIRobotConfig(port="sim:lonely", cameras=cameras))
    with pytest.raises(DeviceError, match="side=/dev/video97 gives no pictures"):
        robot.connect()
    assert not robot.is_connected and robot._live == {}
