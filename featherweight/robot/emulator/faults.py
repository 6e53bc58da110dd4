"""Seeded faults of the serial line and of the board."""

import random

from pydantic import Field

from featherweight.config import Config
from featherweight.robot.kit import LOOP_US

Rate = float


class FaultConfig(Config):
    """Probability of each fault per status line; all zero by default."""

    bit_flip: Rate = Field(default=0.0, ge=0, le=1)
    """One bit of the line flips."""
    drop: Rate = Field(default=0.0, ge=0, le=1)
    """One byte is lost."""
    duplicate: Rate = Field(default=0.0, ge=0, le=1)
    """One byte comes twice."""
    truncate: Rate = Field(default=0.0, ge=0, le=1)
    """The line ends early, without line end."""
    merge: Rate = Field(default=0.0, ge=0, le=1)
    """The line end is lost, so that two lines become one."""
    wrong_counts: Rate = Field(default=0.0, ge=0, le=1)
    """A count does not fit the number of values."""
    non_ascii: Rate = Field(default=0.0, ge=0, le=1)
    """A byte above 127 stands in the line."""
    command_bit_flip: Rate = Field(default=0.0, ge=0, le=1)
    """One bit of a command on its way to the kit flips."""
    stall: Rate = Field(default=0.0, ge=0, le=1)
    """The kit is silent for up to half a second."""
    reset: Rate = Field(default=0.0, ge=0, le=1)
    """The board starts again, as after a drop of its supply."""
    seed: int = Field(default=0, ge=0)
    """Of all faults."""


class Faults:
    """Draws faults; the same seed and the same lines give the same faults."""

    def __init__(self, config: FaultConfig) -> None:
        self.config = config
        self.count = 0
        self._random = random.Random(config.seed)

    def happens(self, rate: float) -> bool:
        """Draw whether a fault of this rate happens now."""
        is_hit = rate > 0 and self._random.random() < rate
        self.count += is_hit
        return is_hit

    def corrupt(self, line: bytes) -> bytes:
        """Return a status line as it arrives."""
        config = self.config
        if self.happens(config.wrong_counts):
            line = line.replace(b"6 ", self._random.choice([b"5 ", b"7 ", b""]), 1)
        if self.happens(config.bit_flip):
            line = self._flip(line)
        if self.happens(config.drop):
            place = self._place(line)
            line = line[:place] + line[place + 1 :]
        if self.happens(config.duplicate):
            place = self._place(line)
            line = line[:place] + line[place : place + 1] + line[place:]
        if self.happens(config.non_ascii):
            place = self._place(line)
            line = line[:place] + bytes([self._random.randint(128, 255)]) + line[place:]
        if self.happens(config.truncate):
            line = line[: self._place(line)]
        if self.happens(config.merge):
            line = line.rstrip(b"\r\n")
        return line

    def corrupt_command(self, data: bytes) -> bytes:
        """Return bytes from the host as they arrive at the kit."""
        return self._flip(data) if self.happens(self.config.command_bit_flip) else data

    def stall_us(self) -> int:
        """Return for how long the kit says nothing now; mostly 0."""
        return self._random.randint(LOOP_US, 500_000) if self.happens(self.config.stall) else 0

    def _place(self, line: bytes) -> int:
        return self._random.randrange(max(1, len(line)))

    def _flip(self, line: bytes) -> bytes:
        place = self._place(line)
        flipped = line[place : place + 1] and bytes([line[place] ^ (1 << self._random.randrange(8))])
        return line[:place] + flipped + line[place + 1 :]
