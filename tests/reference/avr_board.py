"""The firmware in a simulated ATmega328P, as a kit: what `EmulatedKit` offers, in virtual time, from the real binary.

Needs Debian's gcc-avr, avr-libc, libsimavr-dev and libelf-dev; the parse oracle arduino-core-avr, too.
"""

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FIRMWARE = ROOT / "firmware"
CORE = Path("/usr/share/arduino/hardware/arduino/avr")
INSTALL = "apt-get install -y gcc-avr avr-libc libsimavr-dev libelf-dev"
CYCLES_PER_US = 16


@dataclass(frozen=True)
class Pulse:
    """One pulse on a servo's pin."""

    servo: int
    rise_us: float
    width_us: float


def require_avr():
    """Skip with the install line where the compiler or the simulator is missing."""
    if shutil.which("avr-gcc") is None or not Path("/usr/include/simavr/sim_avr.h").exists():
        pytest.skip(f"no compiler or simulator of AVR; run {INSTALL}")


def build(folder, reader):
    """Build the firmware; return its ELF."""
    command = ["make", "-s", "-C", str(FIRMWARE), f"READER={reader}", f"BUILD={folder / reader}"]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    return folder / reader / "firmware.elf"


def build_oracle(folder):
    """Build the sketch with the real Arduino core; return its ELF."""
    if not CORE.exists():
        pytest.skip("no Arduino core; run apt-get install -y arduino-core-avr")
    core = CORE / "cores" / "arduino"
    names = ["HardwareSerial", "HardwareSerial0", "Print", "Stream", "main"]
    sources = [str(core / f"{name}.cpp") for name in names] + [str(core / f"{name}.c") for name in ("wiring", "hooks")]
    flags = ["-mmcu=atmega328p", "-DF_CPU=16000000L", "-DARDUINO=10813", "-Os", "-w"]
    flags += ["-ffunction-sections", "-fdata-sections", "-Wl,--gc-sections"]
    flags += [f"-I{core}", f"-I{CORE / 'variants' / 'standard'}"]
    elf = folder / "oracle.elf"
    command = ["avr-gcc", *flags, str(FIRMWARE / "oracle" / "parse_int.cpp"), *sources, "-o", str(elf)]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    return elf


def build_board(folder):
    """Build the program that runs an ELF in libsimavr."""
    program = folder / "board"
    source = str(FIRMWARE / "simulation" / "board.c")
    command = ["cc", "-O2", "-I/usr/include/simavr", source, "-o", str(program), "-lsimavr", "-lelf"]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    return program


class AvrBoard:
    """A board with a firmware; a context manager.

    Args:
        program: of `build_board`.
        elf: firmware.
        resets_on_open: whether opening the port starts the board again, as an Uno does.
        most_step_us: of the board's time in one call; behind a terminal the board's clock stands still while the
            computer is too slow for it, instead of falling behind for ever. None for no such end.
    """

    def __init__(self, program, elf, resets_on_open=True, most_step_us=None):
        self._most_step_us, self._lag_us = most_step_us, 0
        self._process = subprocess.Popen(
            [str(program), str(elf)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self._resets_on_open = resets_on_open
        self._unsent, self._unread = b"", b""
        self.is_open = False
        self.now_us = 0
        self.pulses = []

    def open(self, now_us):
        """The host opens the port."""
        self._advance(now_us)
        self.is_open, self._unread = True, b""
        if self._resets_on_open:
            self.ask("reset")

    def close(self):
        """The host closes the port."""
        self.is_open = False

    def write(self, now_us, data):
        """The host writes bytes at an instant."""
        self._advance(now_us)
        self._unsent += data

    def read(self, now_us):
        """Return what was printed up to an instant."""
        self._advance(now_us)
        data, self._unread = self._unread, b""
        return data

    def set_inputs(self, pots, digitals):
        """Set readings of potentiometers and levels of inputs."""
        self.ask("pots " + " ".join(map(str, pots)))
        self.ask("digitals " + " ".join(map(str, digitals)))

    def ask(self, line):
        """Send a line to the program, return its answer."""
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        return self._process.stdout.readline().rstrip("\n")

    def stop(self):
        """End the program."""
        self._process.stdin.close()
        self._process.wait(timeout=10)
        self._process.stdout.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()

    def _advance(self, now_us):
        now_us -= self._lag_us
        if self._most_step_us is not None and now_us - self.now_us > self._most_step_us:
            late_us = now_us - self.now_us - self._most_step_us
            self._lag_us += late_us
            now_us -= late_us
        # The simulator's time may stand a few cycles behind an instant; whole microseconds are enough here.
        if now_us <= self.now_us:
            return
        self.now_us = now_us
        output, _, pulses = self.ask(f"run {now_us} {self._unsent.hex() or '-'}").partition("|")
        self._unsent = b""
        if self.is_open:
            self._unread += bytes.fromhex(output)
        for text in pulses.split():
            servo, rise, width = map(int, text.split(","))
            self.pulses.append(Pulse(servo, rise / CYCLES_PER_US, width / CYCLES_PER_US))
