"""avrdude against a boot loader behind a pseudo-terminal."""

import os
import shutil
import signal
import sys
import threading
import time

import pytest
from boot_loader import BootLoader

from featherweight import robot as fwr
from featherweight.errors import ConfigError, DeviceError
from featherweight.robot.driver.ports import PortInfo
from featherweight.robot.hardware import flash as flash_module
from featherweight.robot.hardware.firmware_file import read_hex, shipped_firmware
from featherweight.robot.hardware.flash import flash

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals")


@pytest.fixture
def firmware(tmp_path):
    path = tmp_path / "firmware.hex"
    path.write_bytes(shipped_firmware())
    return path


def needs_avrdude():
    if shutil.which("avrdude") is None:
        pytest.skip("no avrdude; run apt-get install -y avrdude")


def yes(question):
    return True


def write(board, firmware, ask=yes):
    needs_avrdude()
    with fwr.PseudoTerminal(board) as terminal:
        return flash(terminal.path, firmware, ask)


@pytest.mark.slow
def test_the_board_holds_the_firmware_afterwards_and_the_old_one_is_kept(firmware):
    board, asked = BootLoader(), []

    done = write(board, firmware, lambda question: bool(asked.append(question)) or True)

    assert done.is_written and all(board.memory[at] == byte for at, byte in read_hex(shipped_firmware()).items())
    assert len(asked) == 1 and "The old firmware is kept in" in asked[0]
    assert bytes(read_hex(done.backup.read_bytes()).values())[:1000] == b"\x55" * 1000


@pytest.mark.slow
def test_no_means_that_nothing_is_written(firmware):
    board = BootLoader()
    assert not write(board, firmware, lambda question: False).is_written
    assert board.pages == 0 and board.memory[:1000] == b"\x55" * 1000


@pytest.mark.slow
@pytest.mark.parametrize(
    ("board", "said"),
    [
        (BootLoader(signature=(0x1E, 0x98, 0x01)), "has a processor with signature 1e9801; expected 1e950f"),
        (BootLoader(forgets=True), "failed while writing"),
        (BootLoader(dies_after=3), "failed while writing"),
        (fwr.EmulatedKit(), "has no boot loader that answers"),
    ],
    ids=["other board", "verify", "interrupted", "no boot loader"],
)
def test_what_goes_wrong_is_one_sentence_with_the_way_back(firmware, board, said, monkeypatch):
    monkeypatch.setattr(flash_module, "PATIENCE_S", 15.0)
    with pytest.raises(DeviceError, match=said) as caught:
        write(board, firmware)
    text = str(caught.value)
    if "while writing" in said:
        assert "The boot loader is intact: Run the same command again, or write " in text and " back with" in text
    else:
        assert "stays as it was" in text or "is as it was" in text
        assert isinstance(board, fwr.EmulatedKit) or board.pages == 0


@pytest.mark.slow
def test_ctrl_c_while_writing_says_the_way_back(firmware):
    board = BootLoader()

    def interrupt():
        while board.pages < 3:
            time.sleep(0.005)
        os.kill(os.getpid(), signal.SIGINT)

    def agree(question):
        threading.Thread(target=interrupt, daemon=True).start()
        return True

    with pytest.raises(
        DeviceError, match=r"was interrupted while writing.*Run the same command again, or write .* back"
    ):
        write(board, firmware, agree)
    assert write(board, firmware).is_written  # the same command again


def test_without_avrdude_the_file_is_named_and_the_board_untouched(firmware, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(DeviceError, match=rf"expected it to write {firmware}.*the board is as it was"):
        flash("/dev/ttyACM0", firmware, yes)


def test_a_busy_port_is_said_before_anything_happens(firmware):
    board = BootLoader()
    with fwr.PseudoTerminal(board) as terminal:
        serial = pytest.importorskip("serial")
        with serial.Serial(terminal.path, exclusive=True), pytest.raises(DeviceError, match="is in use by another"):
            flash(terminal.path, firmware, yes, avrdude=sys.executable)
    assert board.pages == 0


@pytest.mark.parametrize(("paths", "said"), [([], "found no board"), (["/dev/a", "/dev/b"], "found /dev/a, /dev/b")])
def test_auto_never_guesses(firmware, monkeypatch, paths, said):
    monkeypatch.setattr(flash_module, "list_ports", lambda: [PortInfo(path, "", 0x2341, True) for path in paths])
    with pytest.raises(DeviceError, match=said):
        flash("auto", firmware, yes, avrdude=sys.executable)


def test_a_file_that_is_no_firmware_is_refused_first(tmp_path):
    (tmp_path / "no.hex").write_text("no")
    with pytest.raises(ConfigError, match="Intel hex"):
        flash("auto", tmp_path / "no.hex", yes)
    with pytest.raises(ConfigError, match="is not there"):
        flash("auto", tmp_path / "missing.hex", yes)
