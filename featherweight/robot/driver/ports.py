"""Serial ports: which are there, which one holds a kit, and what keeps one from opening, in one sentence."""

import errno
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from featherweight.errors import ConfigError, DeviceError, MissingExtraError
from featherweight.robot.checked_lines import parse_checked_status
from featherweight.robot.driver.link_state import BOOT_WAIT_S
from featherweight.robot.kit import BAUD, USB_VENDORS
from featherweight.robot.protocol import LineSplitter, is_text, parse_status

READ_TIMEOUT_S = 0.05
"""How long a read waits; the driver's thread wakes at least this often."""


class Port(Protocol):
    """What the driver needs of a serial port; pyserial's class is one."""

    @property
    def in_waiting(self) -> int:
        """Bytes that can be read at once."""
        ...

    def read(self, size: int = 1) -> bytes:
        """Read up to `size` bytes, or what comes before the time-out."""
        ...

    def write(self, data: bytes) -> int | None:
        """Write without blocking; return how many bytes went out."""
        ...

    def reset_input_buffer(self) -> None:
        """Drop what has arrived and was not read."""
        ...

    def close(self) -> None:
        """Close the port."""
        ...


Opener = Callable[[], Port]


@dataclass(frozen=True)
class PortInfo:
    """A serial port of this computer."""

    path: str
    description: str
    vendor: int | None
    is_likely: bool
    """Whether its USB vendor is one of those of the kit's boards."""


def import_serial() -> Any:
    """Import pyserial, or say how to install it."""
    try:
        import serial
        import serial.tools.list_ports
    except ImportError as error:
        raise MissingExtraError(
            "robot: package=pyserial is not installed; expected it for serial ports. Run pip install "
            "featherweight[robot]."
        ) from error
    return serial


def list_ports() -> list[PortInfo]:
    """Return the serial ports of this computer, those of likely boards first."""
    found = []
    for port in import_serial().tools.list_ports.comports():
        found.append(PortInfo(port.device, port.description or "", port.vid, port.vid in USB_VENDORS))
    return sorted(found, key=lambda port: (not port.is_likely, port.path))


def open_serial(path: str) -> Port:
    """Open a serial port as the kit needs it.

    Raises:
        DeviceError: if it is not there, busy, forbidden (names the group that may) or no serial port.
    """
    serial = import_serial()
    try:
        port: Port = serial.Serial(path, BAUD, timeout=READ_TIMEOUT_S, write_timeout=0, exclusive=_exclusive())
        port.reset_input_buffer()
    except (OSError, ValueError) as error:
        raise DeviceError(explain_open(path, error)) from error
    return port


def _exclusive() -> bool | None:
    return None if sys.platform == "win32" else True


def explain_open(path: str, error: Exception) -> str:
    """Say in one sentence why a port could not be opened, and what to do."""
    code = getattr(error, "errno", None)
    text = str(error)
    if code == errno.EACCES or "PermissionError" in text or "Access is denied" in text:
        if sys.platform == "win32":
            return f"robot: port={path} is in use by another program; expected a free port. Close that program."
        group = _group(path)
        return (
            f"robot: port={path} may not be opened by you; expected a member of the group '{group}'. "
            f"Run sudo usermod -aG {group} $USER, then log out and in again."
        )
    if code == errno.ENOENT or "FileNotFound" in text or "No such file" in text:
        return f"robot: port={path} is not there; expected a connected kit. Plug it in, or look with fw robot ports."
    if code in (errno.EBUSY, errno.EAGAIN, errno.EWOULDBLOCK) or "exclusively lock" in text:
        return f"robot: port={path} is in use by another program; expected a free port. Close that program."
    if (
        code in (errno.ENOTTY, errno.EINVAL, errno.EISDIR)
        or "Could not configure" in text
        or type(error).__name__ == "error"
    ):
        return f"robot: port={path} is no serial port; expected one such as /dev/ttyACM0. Look with fw robot ports."
    return (
        f"robot: port={path} could not be opened ({text}); expected a kit. Unplug it, wait a moment, plug it in again."
    )


def _group(path: str) -> str:
    try:
        import grp

        return grp.getgrgid(os.stat(path).st_gid).gr_name
    except (ImportError, KeyError, OSError):
        return "dialout"


@dataclass(frozen=True)
class Probe:
    """What a port said: a kit has at least one status line."""

    status_lines: int
    other_lines: int
    received_bytes: int

    def explain(self, path: str, wait_s: float) -> str:
        """Say in one sentence what is wrong with a port that gave no status line."""
        if self.received_bytes == 0:
            return (
                f"robot: port={path} said nothing for {wait_s:g} s; expected status lines of a kit. "
                "Check the cable, and that the kit's firmware is on the board."
            )
        if self.other_lines == 0:
            return (
                f"robot: port={path} sends {self.received_bytes} bytes but no line of text; expected status lines at "
                f"{BAUD} baud. It is another device, or its firmware uses another baud rate."
            )
        return (
            f"robot: port={path} sends {self.other_lines} lines that are no status lines; expected lines that "
            f"end in UMI. "
            "It is another device: choose another port with --port, or look with fw robot ports."
        )


def probe(port: Port, wait_s: float = BOOT_WAIT_S) -> Probe:
    """Listen to an open port, without writing, until a status line comes or the time is over."""
    splitter = LineSplitter()
    received = other = 0
    deadline_s = time.monotonic() + wait_s
    while time.monotonic() < deadline_s:
        data = port.read(max(1, port.in_waiting))
        received += len(data)
        for line in splitter.feed(data):
            if parse_status(line) is not None or parse_checked_status(line) is not None:
                return Probe(1, other, received)
            other += is_text(line)
    return Probe(0, other, received)


def find_port() -> str:
    """Return the path of the port with a kit: likely boards are asked first, then each must send a status line.

    Raises:
        DeviceError: if there is no port, or none with a kit; the message says what each one did.
    """
    ports = list_ports()
    if not ports:
        raise DeviceError(
            "robot: port=auto found no serial port; expected a connected kit. Plug it in, or use port=sim, "
            "which needs none."
        )
    problems = []
    for info in ports:
        try:
            port = open_serial(info.path)
        except DeviceError as error:
            problems.append(str(error))
            continue
        try:
            found = probe(port)
        except OSError as error:
            problems.append(explain_open(info.path, error))
            continue
        finally:
            port.close()
        if found.status_lines:
            return info.path
        problems.append(found.explain(info.path, BOOT_WAIT_S))
    raise DeviceError("robot: port=auto found no kit; expected status lines on one port.\n" + "\n".join(problems))


def opener_of(port: str) -> Opener:
    """Return what opens a port of a configuration.

    Args:
        port: "sim", "sim:NAME", "pty:PATH" or the path of a serial port.
    Raises:
        ConfigError: if the text is empty.
    """
    if port.partition(":")[0] == "sim":
        from featherweight.robot.emulator.emulated_kit import EmulatedKit
        from featherweight.robot.emulator.in_process import InProcessPort

        return lambda: InProcessPort(EmulatedKit(boot_s=0.05))
    path = port.removeprefix("pty:")
    if not path:
        raise ConfigError(f"robot: port='{port}' names no port; expected auto, sim, pty:PATH or a path. Give one.")
    return lambda: open_serial(path)
