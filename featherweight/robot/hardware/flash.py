"""Writes the firmware to a board with avrdude: looks first, keeps the old one, asks, writes, verifies.

Nothing on the board changes before the question was answered; a failure after that says the way back.
"""

import re
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from featherweight.config.files import write_atomically
from featherweight.errors import ConfigError, DeviceError
from featherweight.robot.calibration_file import cache_folder
from featherweight.robot.driver.ports import list_ports, open_serial
from featherweight.robot.hardware.firmware_file import FLASH_BYTES, read_hex, write_hex

INSTALL_AVRDUDE = "apt-get install -y avrdude (macOS: brew install avrdude; Windows: winget install AVRDudes.AVRDUDE)"
BAUDS = (115200, 57600)
"""Of the boot loaders of an Uno, and of older boards and clones of a Nano."""
PATIENCE_S = 60.0
"""With one run of avrdude; reading and writing take a few seconds each."""
SIGNATURE = "1e950f"
"""Of an ATmega328P."""
Ask = Callable[[str], bool]


@dataclass(frozen=True)
class Flashed:
    """What was done.

    Attributes:
        port: path of the port.
        is_written: whether the firmware was written and verified; False if the answer was no.
        backup: file of what was on the board before, or None if it could not be read.
    """

    port: str
    is_written: bool
    backup: Path | None


def choose_port(port: str) -> str:
    """Return the port to write to; "auto" takes the one likely board, and never guesses between two.

    Raises:
        DeviceError: if there is none, or more than one.
    """
    if port != "auto":
        return port
    likely = [info.path for info in list_ports() if info.is_likely]
    if len(likely) != 1:
        found = f"found {', '.join(likely)}" if likely else "found no board"
        raise DeviceError(f"robot: port=auto {found}; expected one Arduino. Name it: fw robot flash --port PATH.")
    return likely[0]


def flash(port: str, firmware: Path, ask: Ask, avrdude: str | None = None) -> Flashed:
    """Write a firmware to the board on a port.

    Args:
        port: path, or "auto".
        firmware: Intel hex file.
        ask: called with one question before anything is written.
        avrdude: path of the program; None searches for it.
    Raises:
        ConfigError: if the file is no firmware.
        DeviceError: one sentence for each of: no avrdude, no or busy port, silent or other board, failed or
            interrupted writing.
    """
    if not firmware.is_file():
        raise ConfigError(f"robot: firmware={firmware} is not there; expected a firmware.hex. Run fw robot kit build.")
    size = len(read_hex(firmware.read_bytes()))
    program = avrdude or shutil.which("avrdude")
    if program is None or shutil.which(program) is None:
        raise DeviceError(
            f"robot: program=avrdude is not installed; expected it to write {firmware}. Run {INSTALL_AVRDUDE}, "
            f"or write that file with another program; the board is as it was."
        )
    port = choose_port(port)
    # pyserial says in a sentence who keeps a port from us; avrdude would write on over another program.
    open_serial(port).close()
    baud = _look(program, port)
    backup = _keep(program, port, baud)
    kept = f" The old firmware is kept in {backup}." if backup else " The old firmware cannot be read and will be lost."
    if not ask(f"Write {size} bytes to the board on {port}?{kept}"):
        return Flashed(port, False, backup)
    way_back = f"Run the same command again{f', or write {backup} back with --firmware' if backup else ''}"
    try:
        done = _run(program, port, baud, "-D", "-U", f"flash:w:{firmware}:i")
    except KeyboardInterrupt as error:
        raise DeviceError(
            f"robot: port={port} was interrupted while writing; expected a whole firmware. The boot loader is intact: "
            f"{way_back}."
        ) from error
    if done.returncode:
        reason = (
            "differs from the file"
            if "verif" in done.stderr and "mismatch" in done.stderr
            else _last_words(done.stderr)
        )
        raise DeviceError(
            f"robot: port={port} failed while writing ({reason}); expected a verified firmware. The boot loader is "
            f"intact: {way_back}."
        )
    return Flashed(port, True, backup)


def _run(program: str, port: str, baud: int, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [program, "-q", "-p", "m328p", "-c", "arduino", "-P", port, "-b", str(baud), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 1, "", f"error: the board said nothing for {PATIENCE_S:g} s")


def _look(program: str, port: str) -> int:
    """Ask the board for its signature, without writing; return the baud rate that it answers at."""
    answer = ""
    for baud in BAUDS:
        done = _run(program, port, baud, "-n")
        answer = done.stderr
        found = re.search(r"signature = 0x ?([0-9a-f]{2}) ?([0-9a-f]{2}) ?([0-9a-f]{2})", answer.lower())
        if found is None and done.returncode:
            continue
        signature = "".join(found.groups()) if found else SIGNATURE
        if signature != SIGNATURE or done.returncode:
            raise DeviceError(
                f"robot: port={port} has a processor with signature {signature}; expected {SIGNATURE}, an ATmega328P. "
                "It is another board and stays as it was: choose another port."
            )
        return baud
    raise DeviceError(
        f"robot: port={port} has no boot loader that answers ({_last_words(answer)}); expected an Arduino Uno. "
        f"The board is as it was: unplug it, plug it in again, and press its reset button if it has one."
    )


def _keep(program: str, port: str, baud: int) -> Path | None:
    """Read what is on the board into a file of the user's folder."""
    path = cache_folder() / "firmware" / f"before-{time.strftime('%Y%m%d-%H%M%S')}.hex"
    write_atomically(path, b"")
    done = _run(program, port, baud, "-U", f"flash:r:{path}:i")
    if done.returncode or not path.stat().st_size:
        path.unlink(missing_ok=True)
        return None
    # Without the boot loader, which stays, and without what was never written: so the file can be written back.
    memory = {at: byte for at, byte in read_hex(path.read_bytes(), 1 << 16).items() if at < FLASH_BYTES}
    last = max((at for at, byte in memory.items() if byte != 0xFF), default=-1)
    if last < 0:
        path.unlink()
        return None
    write_atomically(path, write_hex({at: byte for at, byte in memory.items() if at <= last}))
    return path


def _last_words(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if "error" in line.lower() or "not in sync" in line]
    return (lines or [line.strip() for line in text.splitlines() if line.strip()] or ["it said nothing"])[-1]
