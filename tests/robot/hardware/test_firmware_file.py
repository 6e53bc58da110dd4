"""The file of the firmware."""

import shutil
import subprocess

import pytest

from featherweight.errors import ConfigError, DeviceError
from featherweight.robot.hardware.firmware_file import build_firmware, read_hex, shipped_firmware, write_hex

COMPILER = "5.4.0"
"""Version of avr-gcc that made the file that ships."""


def test_the_file_that_ships_is_whole_and_small():
    memory = read_hex(shipped_firmware())
    assert min(memory) == 0 and 3000 < len(memory) == max(memory) + 1 < 8192


def test_hex_files_come_back_with_their_gaps():
    memory = {0: 1, 1: 2, 17: 255, 40: 0, 32255: 7}
    assert read_hex(write_hex(memory)) == memory


def test_the_file_that_ships_is_what_the_sources_make():
    if shutil.which("avr-gcc") is None:
        pytest.skip("no avr-gcc; run apt-get install -y gcc-avr avr-libc")
    version = subprocess.run(["avr-gcc", "-dumpversion"], capture_output=True, text=True, check=True).stdout.strip()
    if version != COMPILER:
        pytest.skip(f"avr-gcc {version} makes other bytes than {COMPILER}")
    assert build_firmware() == shipped_firmware()


@pytest.mark.parametrize(
    "data", [b"", b"hello", b":00000001FE\n", b":0100000055AB\n:00000001FF", b":0100000055AA\n", b"\xff\xfe"]
)
def test_what_is_no_whole_intel_hex_is_refused(data):
    with pytest.raises(ConfigError, match="firmware"):
        read_hex(data)


def test_without_a_compiler_the_install_line_is_said(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(DeviceError, match="apt-get install -y gcc-avr avr-libc"):
        build_firmware()
    with pytest.raises(ConfigError, match="reader=v2 is unknown"):
        build_firmware("v2")
