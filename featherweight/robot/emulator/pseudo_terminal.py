"""An emulated kit behind a pseudo-terminal: any program that opens serial ports can talk to it. Linux and macOS.

Three traps of pseudo-terminals are avoided here. Nobody reads while no client is there, so nothing is written then and
a client never sees old lines. Our own slave descriptor is closed, so that the hang-up flag tells whether a client has
the port open; its disappearance is the reset that DTR gives a real board. The master does not block.
"""

import errno
import os
import select
import threading
import time
from types import TracebackType
from typing import Self

from featherweight.errors import DeviceError
from featherweight.robot.emulator.emulated_kit import EmulatedKit


class PseudoTerminal:
    """Runs an emulated kit in a thread; a context manager.

    Args:
        kit: the emulated kit.
        link: path of a symbolic link to the terminal, which stays the same over `unplug` and `replug`; None for none.
        time_scale: seconds of the kit per second of the clock.
    Raises:
        DeviceError: if the system has no pseudo-terminals, or `link` is a file that is not a link of ours.
    """

    def __init__(self, kit: EmulatedKit, link: str | None = None, time_scale: float = 1.0) -> None:
        self.kit = kit
        self._link = link
        self._time_scale = time_scale
        self._master: int | None = None
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._start_s = time.monotonic()
        self.path = ""
        self.replug()
        self._thread = threading.Thread(target=self._run, name="emulated-kit", daemon=True)
        self._thread.start()

    def replug(self) -> None:
        """Plug the cable in: a terminal appears."""
        try:
            import pty
            import tty

            master, slave = pty.openpty()
        except (ImportError, OSError) as error:
            raise DeviceError(
                f"PseudoTerminal: no pseudo-terminal could be opened ({error}); expected Linux or macOS. "
                'Use port="sim", which needs none.'
            ) from error
        tty.setraw(slave)
        path = os.ttyname(slave)
        os.set_blocking(master, False)
        os.close(slave)
        with self._lock:
            self._master, self.path = master, path
        if self._link is not None:
            self._replace_link(path)
            self.path = self._link

    def unplug(self) -> None:
        """Pull the cable out: the terminal disappears under its reader."""
        with self._lock:
            if self._master is not None:
                os.close(self._master)
                self._master = None
            self.kit.close()
        if self._link is not None and os.path.islink(self._link):
            os.unlink(self._link)

    def close(self) -> None:
        """End the thread and the terminal."""
        self._stop.set()
        self._thread.join()
        self.unplug()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _replace_link(self, path: str) -> None:
        assert self._link is not None
        if os.path.lexists(self._link) and not os.path.islink(self._link):
            raise DeviceError(
                f"PseudoTerminal: link={self._link} is a file of yours; expected a free name or a symbolic link. "
                "Choose another name."
            )
        if os.path.lexists(self._link):
            os.unlink(self._link)
        os.symlink(path, self._link)

    def _run(self) -> None:
        while not self._stop.is_set():
            with self._lock:
                is_busy = self._master is not None and self._serve(self._master)
            time.sleep(0.001 if is_busy else 0.005)

    def _serve(self, master: int) -> bool:
        """Move bytes between terminal and kit once; return whether a client is there."""
        now_us = int((time.monotonic() - self._start_s) * self._time_scale * 1e6)
        poll = select.poll()
        poll.register(master, select.POLLIN)
        events = dict(poll.poll(0)).get(master, 0)
        if events & select.POLLHUP:
            self.kit.close()
            self.kit.read(now_us)
            return False
        if not self.kit.is_open:
            self.kit.open(now_us)
        data = b""
        if events & select.POLLIN:
            try:
                data = os.read(master, 4096)
            except OSError as error:
                if error.errno not in (errno.EIO, errno.EAGAIN):
                    raise
        self.kit.write(now_us, data)
        output = self.kit.read(now_us)
        if output:
            try:
                os.write(master, output)
            except OSError as error:
                # A client that does not read loses lines, as behind a full buffer of a real port.
                if error.errno not in (errno.EIO, errno.EAGAIN):
                    raise
        return True
