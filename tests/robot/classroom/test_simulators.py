"""Processes that are started again."""

import os
import signal
import sys
import time

import pytest

from featherweight.robot.classroom import simulators
from featherweight.robot.classroom.simulators import Simulators, student_command

CHILD = [sys.executable, "-S", "-c", "import sys; sys.stdin.buffer.read()"]


def wait_for(condition, seconds=10.0):
    end_s = time.monotonic() + seconds
    while time.monotonic() < end_s:
        if condition():
            return True
        time.sleep(0.02)
    return False


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_a_killed_one_comes_back_and_all_end_with_their_input(monkeypatch):
    monkeypatch.setattr(simulators, "BACKOFF_S", (0.05, 0.2))
    monkeypatch.setattr(simulators, "LOOK_S", 0.02)
    running = Simulators({"a": CHILD, "b": CHILD}, apart_s=0.0)
    assert wait_for(lambda: len(running.processes) == 2)
    first = running.processes["a"]
    os.kill(first, signal.SIGKILL)
    assert wait_for(lambda: running.processes.get("a", first) != first)
    assert running.starts("a") == 2 and running.starts("b") == 1
    numbers = list(running.processes.values())
    running.close()
    for number in numbers:
        with pytest.raises(ProcessLookupError):
            os.kill(number, 0)


def test_the_command_of_a_student_names_its_files():
    command = student_command("m", "wss://127.0.0.1:1", "f", 2, ["front"])
    assert command[1:3] == ["-m", "featherweight.robot.classroom.student"] and command[-2:] == ["--camera", "front"]
