"""The thread that owns a serial port, and the ports that several devices of one program share.

A kit is follower and leader at once (servos and potentiometers on one board), so a `UMIRobot` and a `PotLeader` on one
port use one `SerialLink`. No exception leaves the thread: every failure becomes a state with a reason.
"""

import threading
import time

from featherweight.errors import DeviceError
from featherweight.robot.driver.link_state import BOOT_WAIT_S, LinkCore, LinkState, Received
from featherweight.robot.driver.ports import Opener, Port, Probe, find_port, opener_of


class SerialLink:
    """Reads status lines and sends at most one command for each, in one thread, until it is closed.

    Args:
        opener: opens the port; called again after every loss.
        core: states and look-ahead.
        name: of the port, for messages.
    """

    def __init__(self, opener: Opener, core: LinkCore, name: str = "port") -> None:
        self.core = core
        self.name = name
        self.driver: object | None = None
        """The one object that may move the arm."""
        self._opener = opener
        self._port: Port | None = None
        self._unsent = b""
        self._stop = threading.Event()
        self._first_failure: str | None = None
        self._thread = threading.Thread(target=self._run, name=f"robot-{name}", daemon=True)

    def start(self) -> None:
        """Start the thread and wait for the first status line.

        Raises:
            DeviceError: if the port cannot be opened or no kit answers; one sentence says why.
        """
        self._thread.start()
        deadline_s = time.monotonic() + BOOT_WAIT_S + 1
        while time.monotonic() < deadline_s and self._first_failure is None:
            if self.core.state is LinkState.STREAMING:
                return
            time.sleep(0.005)
        reason = self._first_failure or self._explain_silence()
        self.close()
        raise DeviceError(reason)

    def close(self) -> None:
        """Freeze the arm, end the thread and close the port."""
        if self.core.state is LinkState.STREAMING:
            # The freeze is sent with the next status line; three lines are enough for it and its echo.
            self.core.hold()
            line = self.newest.line_number if self.newest else 0
            deadline_s = time.monotonic() + 0.2
            while self.core.state is LinkState.STREAMING and time.monotonic() < deadline_s:
                if self.core.is_frozen and self.newest and self.newest.line_number > line + 2:
                    break
                time.sleep(0.005)
        self._stop.set()
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join(timeout=2)
        self.core.closed()

    @property
    def newest(self) -> Received | None:
        """The newest good status line."""
        return self.core.newest

    @property
    def is_streaming(self) -> bool:
        """Whether good lines are coming."""
        return self.core.state is LinkState.STREAMING

    def wait_for_line(self, after: int, timeout_s: float = 1.0) -> Received | None:
        """Wait for a status line with a number above `after`; None if none comes in time."""
        deadline_s = time.monotonic() + timeout_s
        while time.monotonic() < deadline_s:
            newest = self.core.newest
            if newest is not None and newest.line_number > after:
                return newest
            time.sleep(0.002)
        return None

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._port = self._open()
                self._talk(self._port)
            except Exception as error:  # pyserial and operating systems raise many kinds when a cable is pulled
                reason = str(error) if isinstance(error, DeviceError) else f"robot: port={self.name} broke ({error})"
                if self.core.statistics.lines == 0 and isinstance(error, DeviceError):
                    self._first_failure = reason
                self._close_port()
                self._stop.wait(self.core.failed(time.monotonic(), reason))
        self._close_port()

    def _open(self) -> Port:
        self.core.opening()
        port = self._opener()
        self._unsent = b""
        self.core.opened(time.monotonic())
        return port

    def _talk(self, port: Port) -> None:
        while not self._stop.is_set():
            data = port.read(max(1, port.in_waiting))
            command = self.core.received(time.monotonic(), data)
            # A line that went out in part is finished before another one begins: the firmware would read the two as
            # one.
            if not self._unsent:
                self._unsent = command
            if self._unsent:
                self._unsent = self._unsent[port.write(self._unsent) or 0 :]
            if self.core.check_silence(time.monotonic()):
                raise DeviceError(self._explain_silence())

    def _explain_silence(self) -> str:
        statistics = self.core.statistics
        if statistics.lines:
            return f"robot: port={self.name} {self.core.reason}"
        return Probe(0, statistics.text_lines, statistics.bytes_received).explain(self.name, BOOT_WAIT_S)

    def _close_port(self) -> None:
        port, self._port = self._port, None
        if port is not None:
            try:
                port.close()
            except Exception as error:  # a port whose cable is gone may fail to close, which changes nothing
                self.core.reason = self.core.reason or str(error)


_shared: dict[str, tuple[SerialLink, int]] = {}
_sharing = threading.Lock()


def acquire(port: str, announces: bool = True) -> SerialLink:
    """Return the running link of a port; devices of one program share it.

    Args:
        port: "auto", "sim", "sim:NAME", "pty:PATH" or a path. "auto" first takes a kit that is in use here already.
        announces: whether a new link offers the checked protocol.
    """
    with _sharing:
        if port == "auto":
            in_use = [name for name in _shared if name.partition(":")[0] != "sim"]
            port = in_use[0] if in_use else find_port()
        if port in _shared:
            link, users = _shared[port]
            _shared[port] = (link, users + 1)
            return link
        link = SerialLink(opener_of(port), LinkCore(announces=announces), port.removeprefix("pty:"))
        link.start()
        _shared[port] = (link, 1)
        return link


def release(link: SerialLink) -> None:
    """Give a link back; the last user closes it."""
    with _sharing:
        for port, (known, users) in list(_shared.items()):
            if known is link:
                if users > 1:
                    _shared[port] = (link, users - 1)
                    return
                del _shared[port]
    link.close()
