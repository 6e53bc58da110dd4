"""A kit in virtual time: firmware, faults, and what opening the port does.

Used behind a pseudo-terminal (`pseudo_terminal`), inside a process (`in_process`), and directly by tests that let an
hour pass in seconds.
"""

from collections import deque
from typing import Literal

from featherweight.robot.emulator.board import Board, PulseHook
from featherweight.robot.emulator.faults import FaultConfig, Faults
from featherweight.robot.emulator.firmware import Firmware
from featherweight.robot.emulator.inputs import Inputs
from featherweight.robot.emulator.kit_firmware import KitFirmware
from featherweight.robot.kit import BOOT_S, BYTE_US


class EmulatedKit:
    """A kit as the host sees it through its port.

    Args:
        inputs: potentiometers and digital inputs.
        boot_s: silence after the port was opened, in seconds.
        resets_on_open: whether opening the port starts the board again, as an Uno does.
        faults: what goes wrong, and how often.
        on_pulse: called with (time in microseconds, (6,) angles) whenever the servos get their pulses.
        firmware: "published", or "own": the one of this project, with whole lines and the checked protocol.
    """

    def __init__(
        self,
        inputs: Inputs | None = None,
        boot_s: float = BOOT_S,
        resets_on_open: bool = True,
        faults: FaultConfig | None = None,
        on_pulse: PulseHook | None = None,
        firmware: Literal["published", "own"] = "published",
    ) -> None:
        kind: type[Board] = Firmware if firmware == "published" else KitFirmware
        self.firmware = kind(inputs, boot_s, on_pulse)
        self.faults = Faults(faults or FaultConfig())
        self.is_open = False
        self._resets_on_open = resets_on_open
        self._output: deque[tuple[int, bytes]] = deque()
        self._silent_until_us = 0

    def open(self, now_us: int) -> None:
        """The host opens the port: DTR resets the board, and old output is gone."""
        self.firmware.advance(now_us)
        self.is_open = True
        self._output.clear()
        if self._resets_on_open:
            self.firmware.reset(now_us)

    def close(self) -> None:
        """The host closes the port; the board goes on, and nobody reads its lines."""
        self.is_open = False

    def write(self, now_us: int, data: bytes) -> None:
        """The host writes bytes at an instant."""
        self._advance(now_us)
        if data:
            self.firmware.receive(now_us, self.faults.corrupt_command(data))

    def read(self, now_us: int) -> bytes:
        """Return the bytes that appear on the wire from the last call to this instant."""
        self._advance(now_us)
        chunks = []
        while self._output and self._output[0][0] < now_us:
            start_us, line = self._output.popleft()
            count = (now_us - start_us) // BYTE_US
            chunks.append(line[:count])
            if count < len(line):
                # At least one byte stays, so the rest is sent later, from where it stands in time.
                self._output.appendleft((start_us + count * BYTE_US, line[count:]))
                break
        return b"".join(chunks)

    def _advance(self, now_us: int) -> None:
        for start_us, line in self.firmware.advance(now_us):
            if self.faults.happens(self.faults.config.reset):
                self.firmware.reset(now_us)
                break
            self._silent_until_us = max(self._silent_until_us, start_us + self.faults.stall_us())
            if self.is_open and start_us >= self._silent_until_us:
                self._output.append((start_us, self.faults.corrupt(line)))
