"""The driver on real ports (pseudo-terminals) and in real time: opening, losing, sharing, and one clear sentence
each."""

import os
import subprocess
import sys
import time

import pytest

from featherweight import robot as fwr
from featherweight.errors import ConfigError, DeviceError
from featherweight.robot.driver.link_state import LinkState
from featherweight.robot.driver.ports import explain_open, find_port, list_ports, open_serial
from featherweight.robot.kit import JOINT_KEYS

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals")


@pytest.fixture
def kit():
    return fwr.EmulatedKit(boot_s=0.05)


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


class Chatter:
    """A terminal behind which something else than a kit talks."""

    def __init__(self, text):
        import threading
        import tty

        self.master, slave = os.openpty()
        tty.setraw(slave)
        self.path, self.slave, self.text, self.ends = os.ttyname(slave), slave, text, threading.Event()
        os.set_blocking(self.master, False)
        self.thread = threading.Thread(target=self.talk)
        self.thread.start()

    def talk(self):
        while not self.ends.wait(0.02):
            try:
                os.write(self.master, self.text)
            except BlockingIOError:
                pass

    def close(self):
        self.ends.set()
        self.thread.join()
        os.close(self.master)
        os.close(self.slave)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "said nothing for 4 s"),
        (b"\xff\x00\xfe\x80\x13" * 9, "another baud rate"),
        (b"temperature 21.5 C\r\n", "lines that are no status lines"),
    ],
)
def test_another_device_is_told_by_what_it_says(text, message, monkeypatch):
    for module in ("link", "link_state"):
        monkeypatch.setattr(f"featherweight.robot.driver.{module}.BOOT_WAIT_S", 0.5)
    chatter = Chatter(text)
    try:
        with pytest.raises(DeviceError, match=message.replace("4 s", "0.5 s")) as caught:
            fwr.UMIRobot(fwr.UMIRobotConfig(port=chatter.path)).connect()
    finally:
        chatter.close()
    assert "\n" not in str(caught.value)


def test_a_missing_port_a_busy_port_and_a_file_are_one_sentence_each(kit, tmp_path):
    with pytest.raises(DeviceError, match="ttyNONE is not there; expected a connected kit"):
        fwr.UMIRobot(fwr.UMIRobotConfig(port="/dev/ttyNONE")).connect()
    (tmp_path / "file").write_text("x")
    with pytest.raises(DeviceError, match="is no serial port"):
        fwr.UMIRobot(fwr.UMIRobotConfig(port=str(tmp_path / "file"))).connect()
    with pytest.raises(ConfigError, match="names no port"):
        fwr.UMIRobot(fwr.UMIRobotConfig(port="pty:")).connect()
    with fwr.PseudoTerminal(kit) as terminal:
        port = open_serial(terminal.path)
        with pytest.raises(DeviceError, match="in use by another program"):
            fwr.UMIRobot(fwr.UMIRobotConfig(port=terminal.path)).connect()
        port.close()


def test_a_forbidden_port_names_the_group(tmp_path):
    import grp

    path = tmp_path / "port"
    path.write_text("")
    group = grp.getgrgid(path.stat().st_gid).gr_name

    text = explain_open(str(path), PermissionError(13, "Permission denied"))

    assert f"group '{group}'" in text and "usermod -aG" in text


def test_auto_finds_no_port_or_no_kit_and_says_what_each_port_did(monkeypatch):
    monkeypatch.setattr("featherweight.robot.driver.ports.list_ports", list)
    with pytest.raises(DeviceError, match="found no serial port; expected a connected kit"):
        find_port()
    assert isinstance(list_ports(), list)


def test_auto_asks_likely_ports_first_and_takes_the_one_with_status_lines(kit, monkeypatch):
    from featherweight.robot.driver.ports import PortInfo

    with fwr.PseudoTerminal(kit) as terminal:
        infos = [PortInfo("/dev/ttyNONE", "", 0x2341, True), PortInfo(terminal.path, "", None, False)]
        monkeypatch.setattr("featherweight.robot.driver.ports.list_ports", lambda: infos)
        assert find_port() == terminal.path


def test_one_board_has_one_driver_and_a_leader_that_stays_does_not_keep_it_moving():
    robot, leader = fwr.UMIRobot(fwr.UMIRobotConfig(port="sim:a")), fwr.PotLeader(fwr.PotLeaderConfig(port="sim:a"))
    with leader:
        robot.connect()
        other = fwr.UMIRobot(fwr.UMIRobotConfig(port="sim:a", lookahead_deg=5))
        with pytest.raises(DeviceError, match="is driven by another UMIRobot of this program"):
            other.connect()
        robot.send_action(dict.fromkeys(JOINT_KEYS, 60.0))
        time.sleep(0.3)
        robot.disconnect()
        time.sleep(0.1)
        settled = leader._link.newest.status.q_deg
        time.sleep(0.3)
        assert leader._link.newest.status.q_deg == settled and leader.get_action() is not None
        with other, fwr.UMIRobot(fwr.UMIRobotConfig(port="sim:b")) as second:
            assert other.link.core.target.lookahead_deg == 5 and second.reported_deg() == (0,) * 6


def test_an_emulated_terminal_never_replaces_a_file_of_the_user(kit, tmp_path):
    path = tmp_path / "kit"
    path.write_text("mine")
    with pytest.raises(DeviceError, match="is a file of yours"):
        fwr.PseudoTerminal(kit, link=str(path))
    assert path.read_text() == "mine"


def test_a_leader_that_fails_holds_the_arm_and_the_session_goes_on():
    calls = {"count": 0}

    def script(time_s):
        calls["count"] += 1
        if 0.5 < time_s < 1.0:
            raise OSError("cable")
        return (10, 0, 0, 0, 0, 0)

    modes = []
    with fwr.UMIRobot(fwr.UMIRobotConfig(port="sim")) as robot, fwr.ScriptedLeader(script) as leader:
        result = fwr.teleoperate(leader, robot, duration_s=1.6, on_step=lambda c: modes.append(c.mode))

    assert fwr.Mode.HOLD in modes and result.mode is fwr.Mode.ACTIVE
    assert result.counters["faulty leader"] > 20


def test_the_driver_and_the_session_import_no_torch():
    program = (
        "import sys\n"
        "sys.modules['torch'] = None\n"  # makes every import of it fail
        "from featherweight import robot as fwr\n"
        "import featherweight.robot.network.follower_side, featherweight.robot.network.operator_side\n"
        "import featherweight.robot.network.relay, featherweight.robot.sim.robot, featherweight.robot.doctor\n"
        "for name in fwr.__all__:\n"
        "    getattr(fwr, name)\n"
        "robot = fwr.UMIRobot(fwr.UMIRobotConfig(port='sim'))\n"
        "robot.connect(); robot.get_observation(); robot.disconnect()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_every_public_name_has_a_docstring_and_the_driver_alone_is_light():
    for name in fwr.__all__:
        if name not in ("JOINTS", "JOINT_KEYS"):
            assert (getattr(fwr, name).__doc__ or "").strip(), name
    program = (
        "import sys\nfrom featherweight import robot as fwr\nfwr.UMIRobot\n"
        "print([m for m in ('torch', 'mujoco', 'zenoh', 'websockets', 'transformers', 'numpy', 'PIL') if m in "
        "sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
