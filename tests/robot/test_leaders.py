import io
import time

import numpy as np
import pytest

from featherweight import robot as fwr
from featherweight.errors import ConfigError, DeviceError
from featherweight.robot.calibration_file import KitCalibration, calibration_path, load_calibration
from featherweight.robot.contract import keyed_angles
from featherweight.robot.driver.link_state import LinkCore, LinkState, Received
from featherweight.robot.emulator.emulated_kit import EmulatedKit
from featherweight.robot.emulator.inputs import ConstantInputs, FloatingInputs
from featherweight.robot.kinematics import tool_point
from featherweight.robot.leaders.calibration import calibrate_channel
from featherweight.robot.leaders.filter import PotFilter
from featherweight.robot.leaders.gamepad import _EVENT
from featherweight.robot.leaders.mapping import JointMap, PoseMap, RateIntegrator
from featherweight.robot.protocol import Status


def sweeps(channel, low=0.4, high=4.6, count=4, lines=400, seed=0, inverted=False):
    """Return (T, 6) volts: one channel swept, the others still, all with a bit of noise."""
    rng = np.random.default_rng(seed)
    wave = (1 - np.cos(np.linspace(0, np.pi * count, lines))) / 2
    volts = np.full((lines, 6), 2.5)
    volts[:, channel] = low + (high - low) * ((1 - wave) if inverted else wave)
    return np.clip(volts + rng.normal(0, 0.003, volts.shape), 0, 5)


@pytest.mark.parametrize("inverted", [False, True])
def test_a_swept_channel_is_mapped_to_the_whole_range(inverted):
    found = calibrate_channel(sweeps(2, inverted=inverted), 2)

    # 1 % and 99 % of a sine lie 0.1 % of the range inside.
    assert found.min_v == pytest.approx(0.4, abs=0.03) and found.max_v == pytest.approx(4.6, abs=0.03)
    assert found.invert is inverted


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (np.random.default_rng(0).uniform(0, 5, (400, 6)), "floats"),
        (sweeps(3), "stood still while potentiometer 4 moved"),
        (sweeps(0, low=2.0, high=2.8), "moved by 0.8"),
        (sweeps(0, count=1), "swept 1 times"),
        (np.zeros((5, 6)), "at least 20"),
        (np.full((50, 6), np.nan), "finite"),
    ],
)
def test_a_wrong_calibration_is_one_sentence_and_changes_nothing(samples, message):
    with pytest.raises(ConfigError, match=message) as caught:
        calibrate_channel(samples, 0)

    assert "\n" not in str(caught.value) and "potentiometer=1" in str(caught.value)


def test_calibrations_are_saved_by_id_and_a_wrong_file_is_refused(robot_home):
    calibration = KitCalibration(id="cube", pot_min_v=[0.4] * 6, pot_max_v=[4.6] * 6, sign=[1, -1, 1, 1, 1, 1])
    calibration.save()

    assert load_calibration("cube") == calibration and load_calibration("other") is None
    path = calibration_path("cube")
    path.rename(calibration_path("other"))
    with pytest.raises(ConfigError, match="belongs to another device"):
        load_calibration("other")
    with pytest.raises(ConfigError, match="is no name of a file"):
        calibration_path("../x")
    with pytest.raises(ConfigError, match="too small; expected more than 1 V"):
        KitCalibration(id="x", pot_min_v=[2.0] * 6, pot_max_v=[2.5] * 6)
    with pytest.raises(ConfigError, match="1 or -1"):
        KitCalibration(id="x", sign=[2] * 6)


def test_offsets_and_signs_go_forth_and_back():
    calibration = KitCalibration(id="x", zero_offset_deg=[3, -3, 4, 0, 0, 0], sign=[1, -1, 1, -1, 1, 1])
    joints = (10.0, 20.0, -30.0, 40.0, 50.0, -60.0)

    assert calibration.to_servo(joints) == (13, -17, -26, -40, 50, -60)
    assert calibration.to_joint(calibration.to_servo(joints)) == joints


def test_the_filter_calms_noise_at_rest_and_follows_motion():
    rng = np.random.default_rng(0)
    still = PotFilter(1.5, 0.02, 0.0049)
    values = [still(2.5 + round(rng.normal(0, 0.4)) * 5 / 1023, 0.0114) for _ in range(300)]
    assert np.std(values[100:]) < 0.003

    moving = PotFilter(1.5, 0.02, 0.0049)
    for i in range(200):
        last = moving(min(4.0, 1.0 + i * 0.0114 * 2), 0.0114)
    assert last == pytest.approx(4.0, abs=0.15)

    spiky = PotFilter(1.5, 0.02, 0.0049)
    for value in [2.0] * 20 + [5.0] + [2.0] * 3:
        last = spiky(value, 0.0114)
    assert last == pytest.approx(2.0, abs=1e-9)


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


def test_joint_maps_and_pose_maps():
    swapped = JointMap(source=[1, 0, 2, 3, 4, 5], gain=[0.5, -1, 1, 1, 1, 1], offset_deg=[0, 0, 10, 0, 0, 0])
    assert swapped.apply((10, 20, 30, 40, 50, 60)) == (10, -10, 40, 40, 50, 60)

    pose = PoseMap()
    for signals in ((0, 0, 0, 0, 0, 30), (90, 0, 0, 0, 0, 30), (0, 90, -90, 0, 0, 30), (90, 90, 90, 0, 0, 30)):
        joints = pose.apply(signals)
        assert max(map(abs, joints)) <= 90 and joints[5] == 30
    np.testing.assert_allclose(tool_point(np.radians(pose.apply((0,) * 6)[:5])), pose.center_m, atol=1e-9)


def test_rates_decay_within_a_tenth_of_a_second_of_silence():
    rates = RateIntegrator()
    rates.start_at((0,) * 6)
    rates.advance(0.0)
    now = 0.0
    for _ in range(60):
        now += 1 / 60
        rates.renew((30, 0, 0, 0, 0, 0), now)
        moved = rates.advance(now)[0]
    assert moved == pytest.approx(30, abs=0.6)
    track = [rates.advance(now + i / 60)[0] for i in range(1, 60)]

    assert track[5] == track[-1] and track[-1] - moved < 30 * 0.1


def test_twist_rates_move_the_wrist():
    rates = RateIntegrator("twist")
    start = (10.0, 20.0, -20.0, 0.0, -60.0, 0.0)
    rates.start_at(start)
    rates.advance(0.0)
    for i in range(1, 31):
        rates.renew((50, 0, 0, 0, 0, 0), i / 60)
        after = rates.advance(i / 60)

    moved = tool_point(np.radians(after[:5]), 0) - tool_point(np.radians(start[:5]), 0)
    np.testing.assert_allclose(moved, [0.025, 0, 0], atol=1.5e-3)


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


def test_scripts_follow_time_or_a_list():
    with fwr.ScriptedLeader([[1] * 6, [2] * 6, [3] * 6], rate_hz=1000) as leader:
        time.sleep(0.02)
        assert leader.get_action()["gripper.pos"] == 3 and leader.is_finished
    with pytest.raises(DeviceError, match="is not connected"):
        leader.get_action()
