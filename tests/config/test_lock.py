import subprocess
import sys

import pytest

from featherweight.config.lock import locked_folder

HOLD = "import sys; from pathlib import Path; from featherweight.config.lock import locked_folder\n"
HOLD += "with locked_folder(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"


def test_a_folder_is_held_against_other_processes_until_the_holder_ends(tmp_path):
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(BlockingIOError), locked_folder(tmp_path):
            pass
        holder.kill()
    with locked_folder(tmp_path):
        assert not list(tmp_path.iterdir())


def test_a_system_without_locks_does_not_keep_anybody_from_working(tmp_path, monkeypatch):
    for name in ("fcntl", "msvcrt"):
        monkeypatch.setitem(sys.modules, name, None)
    with locked_folder(tmp_path), locked_folder(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_not_there_cannot_be_held(tmp_path):
    with pytest.raises(FileNotFoundError), locked_folder(tmp_path / "absent"):
        pass
