"""Where the emulated kit's potentiometers and digital inputs come from."""

import csv
import math
import os
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from featherweight.errors import ConfigError
from featherweight.robot.kit import DIGITAL_INPUTS, POT_MAX, POTENTIOMETERS

Reading = tuple[tuple[int, ...], tuple[int, ...]]


class Inputs(Protocol):
    """Gives the readings at a time of the kit's clock."""

    def read(self, time_s: float) -> Reading:
        """Return ((6,) potentiometers 0..1023, (5,) digital inputs 0 or 1)."""
        ...


class ConstantInputs:
    """The same readings for ever; `set` changes them, from any thread (sliders, tests)."""

    def __init__(self, pots: Sequence[int] = (512,) * POTENTIOMETERS, digitals: Sequence[int] = (1,) * DIGITAL_INPUTS):
        self.set(pots, digitals)

    def set(self, pots: Sequence[int], digitals: Sequence[int] = (1,) * DIGITAL_INPUTS) -> None:
        """Replace all readings at once."""
        self._reading = _checked("ConstantInputs", pots, digitals)

    def read(self, time_s: float) -> Reading:
        """Return the readings; see `Inputs`."""
        return self._reading


class SineInputs:
    """Potentiometers that swing around the middle, each with its own phase.

    Args:
        period_s: seconds of one swing.
        amplitude: largest deviation from 512.
        noise: standard deviation of seeded noise, in counts.
        seed: of the noise.
    """

    def __init__(self, period_s: float = 8.0, amplitude: int = 400, noise: float = 0.0, seed: int = 0) -> None:
        self._period_s, self._amplitude, self._noise = period_s, amplitude, noise
        self._random = random.Random(seed)

    def read(self, time_s: float) -> Reading:
        """Return the readings; see `Inputs`."""
        pots = []
        for i in range(POTENTIOMETERS):
            value = 512 + self._amplitude * math.sin(2 * math.pi * time_s / self._period_s + i)
            value += self._random.gauss(0, self._noise) if self._noise else 0
            pots.append(max(0, min(POT_MAX, round(value))))
        return tuple(pots), (1,) * DIGITAL_INPUTS


class FloatingInputs:
    """Unconnected potentiometers: every reading is another one, as an open analog pin gives."""

    def __init__(self, seed: int = 0) -> None:
        self._random = random.Random(seed)

    def read(self, time_s: float) -> Reading:
        """Return the readings; see `Inputs`."""
        return tuple(self._random.randint(0, POT_MAX) for _ in range(POTENTIOMETERS)), (1,) * DIGITAL_INPUTS


class CsvInputs:
    """Playback of a CSV file with the columns time_s, p1..p6 and, if there, d1..d5; it starts again at its end.

    Raises:
        ConfigError: if the file cannot be read or a row is wrong; the message names the row.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        where = f"CsvInputs: {path}"
        try:
            with open(path, newline="") as file:
                rows = list(csv.DictReader(file))
            self._times_s = [float(row["time_s"]) for row in rows]
            self._readings = []
            for number, row in enumerate(rows, start=2):
                pots = [int(row[f"p{i + 1}"]) for i in range(POTENTIOMETERS)]
                digitals = [int(row.get(f"d{i + 1}") or 1) for i in range(DIGITAL_INPUTS)]
                self._readings.append(_checked(f"{where}, line {number}", pots, digitals))
        except (OSError, KeyError, TypeError, ValueError) as error:
            if isinstance(error, ConfigError):
                raise
            raise ConfigError(
                f"{where} cannot be played ({error!r}); expected columns time_s, p1..p6 and optionally d1..d5. "
                "Correct the file."
            ) from error
        if not rows or self._times_s != sorted(self._times_s):
            raise ConfigError(
                f"{where} has {len(rows)} rows whose times do not rise; expected at least one. Sort them."
            )

    def read(self, time_s: float) -> Reading:
        """Return the readings; see `Inputs`."""
        import bisect

        first_s, last_s = self._times_s[0], self._times_s[-1]
        if last_s > first_s:
            time_s = first_s + (time_s - first_s) % (last_s - first_s)
        return self._readings[max(0, bisect.bisect_right(self._times_s, time_s) - 1)]


class FileInputs:
    """Readings that another process keeps writing: the file's newest complete line of six or eleven integers."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path)
        self._reading: Reading = ((512,) * POTENTIOMETERS, (1,) * DIGITAL_INPUTS)
        self._stamp: tuple[int, int] | None = None

    def read(self, time_s: float) -> Reading:
        """Return the newest readings; a missing or half-written file leaves them as they were."""
        try:
            information = self._path.stat()
            stamp = (information.st_mtime_ns, information.st_size)
            if stamp != self._stamp:
                self._stamp = stamp
                *lines, _ = self._path.read_text().split("\n")
                values = [int(word) for word in lines[-1].split()]
                digitals = values[POTENTIOMETERS:] or [1] * DIGITAL_INPUTS
                self._reading = _checked("FileInputs", values[:POTENTIOMETERS], digitals)
        except (OSError, ValueError, IndexError):
            pass
        return self._reading


def _checked(where: str, pots: Sequence[int], digitals: Sequence[int]) -> Reading:
    is_right = len(pots) == POTENTIOMETERS and len(digitals) == DIGITAL_INPUTS
    if not is_right or not all(0 <= pot <= POT_MAX for pot in pots) or not set(digitals) <= {0, 1}:
        raise ConfigError(
            f"{where}: pots={list(pots)} digitals={list(digitals)} are no readings; expected {POTENTIOMETERS} numbers "
            f"from 0 to {POT_MAX} and {DIGITAL_INPUTS} of 0 or 1. Correct them."
        )
    return tuple(map(int, pots)), tuple(map(int, digitals))
