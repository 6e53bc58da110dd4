"""The firmware's file: the one that ships, or a fresh one where avr-gcc is."""

import shutil
import subprocess
import tempfile
from pathlib import Path

import featherweight
from featherweight.errors import ConfigError, DeviceError

INSTALL_COMPILER = "apt-get install -y gcc-avr avr-libc"
READERS = ("strict", "v1")
FLASH_BYTES = 32768 - 512
"""Of an ATmega328P, less the boot loader of an Uno."""


def firmware_folder() -> Path:
    """Return the folder of sources: in the wheel beside the package, in a checkout at its root.

    Raises:
        ConfigError: if it is not there.
    """
    package = Path(featherweight.__file__).parent
    for folder in (package / "firmware", package.parent / "firmware"):
        if (folder / "Makefile").is_file():
            return folder
    raise ConfigError(
        f"robot: folder={package / 'firmware'} is missing; expected the firmware. Install featherweight again."
    )


def shipped_firmware() -> bytes:
    """Return the Intel hex file that ships: the strict reader, made by `build_firmware`."""
    return (firmware_folder() / "firmware.hex").read_bytes()


def build_firmware(reader: str = "strict") -> bytes:
    """Compile the firmware and return it as Intel hex.

    Args:
        reader: "strict" takes whole lines alone; "v1" reads numbers, and starts, as the published firmware does.
    Raises:
        ConfigError: if the reader is unknown.
        DeviceError: if avr-gcc or make is missing, or the compiler refuses; the message holds the install command.
    """
    if reader not in READERS:
        raise ConfigError(f"robot: reader={reader} is unknown; expected {' or '.join(READERS)}. Choose one.")
    missing = [name for name in ("make", "avr-gcc", "avr-objcopy") if shutil.which(name) is None]
    if missing:
        raise DeviceError(
            f"robot: program={missing[0]} is not installed; expected the compiler of AVR. Run {INSTALL_COMPILER}, or "
            "take the firmware.hex that ships."
        )
    with tempfile.TemporaryDirectory() as folder:
        command = ["make", "-s", "-C", str(firmware_folder()), f"READER={reader}", f"BUILD={folder}"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no output"])[-1]
            raise DeviceError(
                f"robot: avr-gcc refuses the firmware ({last}); expected it to compile. Undo your change."
            )
        return Path(folder, "firmware.hex").read_bytes()


def write_hex(memory: dict[int, int]) -> bytes:
    """Return address -> byte as Intel hex; the inverse of `read_hex`."""
    lines = []
    for start in sorted({address // 16 * 16 for address in memory}):
        run: list[int] = []
        for address in range(start, start + 17):
            if address in memory and address < start + 16:
                run.append(address)
            elif run:
                record = bytes([len(run), *run[0].to_bytes(2, "big"), 0, *(memory[at] for at in run)])
                lines.append(f":{record.hex().upper()}{-sum(record) % 256:02X}")
                run = []
    return "\n".join([*lines, ":00000001FF", ""]).encode("ascii")


def read_hex(data: bytes, most_bytes: int = FLASH_BYTES) -> dict[int, int]:
    """Return address -> byte of an Intel hex file.

    Args:
        data: of the file.
        most_bytes: largest memory that it may fill.
    Raises:
        ConfigError: if it is none, a checksum is wrong, or it does not fit beside the boot loader.
    """
    memory: dict[int, int] = {}
    base, is_ended = 0, False
    try:
        for line in data.decode("ascii").split():
            record = bytes.fromhex(line.removeprefix(":"))
            if not line.startswith(":") or sum(record) % 256 or len(record) != record[0] + 5:
                raise ValueError(line)
            kind, address, body = record[3], base + int.from_bytes(record[1:3], "big"), record[4:-1]
            if kind == 0:
                memory.update((address + i, byte) for i, byte in enumerate(body))
            elif kind == 2:
                base = int.from_bytes(body, "big") * 16
            elif kind == 4:
                base = int.from_bytes(body, "big") << 16
            elif kind == 1:
                is_ended = True
    except (UnicodeDecodeError, ValueError) as error:
        raise ConfigError(
            f"robot: firmware={error} is no line of Intel hex; expected a firmware.hex. Build it again."
        ) from error
    if not memory or not is_ended or max(memory) >= most_bytes:
        raise ConfigError(
            f"robot: firmware of {len(memory)} bytes is incomplete or too large; expected 1 to {most_bytes}. "
            f"Build it again."
        )
    return memory
