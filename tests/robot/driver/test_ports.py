"""Finding and opening ports, and what every failure says."""

import os
import sys

import pytest

from featherweight import robot as fwr
from featherweight.errors import ConfigError, DeviceError
from featherweight.robot.driver.ports import explain_open, find_port, list_ports, open_serial

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals")


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
