"""The group: refusals of what a launcher has set wrongly, and what a lost process is called."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from featherweight.distributed.group import (
    explain_lost_processes,
    is_first,
    launched_processes,
    local_device,
    rank,
    refuse_several,
    start,
    stop,
    world_size,
)
from featherweight.errors import ConfigError, DeviceError
from featherweight.training.compare import compare
from featherweight.training.sweep import sweep

REFERENCE = Path(__file__).parents[1] / "reference"


@pytest.fixture
def launched(monkeypatch):
    """Return a function that sets what a launcher sets."""

    def launch(**variables):
        for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "LOCAL_RANK"):
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return launch


def test_without_a_launcher_there_is_no_group(launched):
    launched()
    assert start() == local_device()
    assert (rank(), world_size(), is_first(), launched_processes()) == (0, 1, True, 1)
    stop()


def test_variables_that_are_missing_or_contradict_each_other_are_named(launched):
    launched(WORLD_SIZE="2", RANK="0")
    with pytest.raises(ConfigError, match="MASTER_ADDR is not set although WORLD_SIZE=2 is"):
        start()
    launched(WORLD_SIZE="2", RANK="2", MASTER_ADDR="127.0.0.1", MASTER_PORT="1")
    with pytest.raises(ConfigError, match="RANK=2 and WORLD_SIZE=2 do not fit"):
        start()


def test_a_group_that_does_not_form_is_an_error_with_its_address(launched):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    launched(WORLD_SIZE="2", RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    with pytest.raises(DeviceError, match=f"group of 2 processes does not form at 127.0.0.1:{port}"):
        start(timeout_s=1)


def test_a_port_in_use_is_an_error_with_its_address(launched):
    with socket.socket() as used:
        used.bind(("127.0.0.1", 0))
        used.listen()
        port = str(used.getsockname()[1])
        launched(WORLD_SIZE="2", RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
        with pytest.raises(DeviceError, match=rf"127.0.0.1:{port} \(.*(EADDRINUSE|in use)"):
            start(timeout_s=2)


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2])
def test_a_group_that_cannot_form_ends_all_of_its_processes_and_one_says_why(count):
    # A port that somebody else uses, and one of two processes that nobody has started.
    with socket.socket() as used:
        used.bind(("127.0.0.1", 0))
        if count == 2:
            used.listen()
        port = str(used.getsockname()[1])
        shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
        if count == 1:
            used.close()
        processes = [
            subprocess.Popen(
                [sys.executable, str(REFERENCE / "launched_start.py")],
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            )
            for rank in range(count)
        ]
        outputs = [process.communicate(timeout=240)[0] for process in processes]
    assert [process.returncode for process in processes] == [1] * count
    assert outputs[0].count(f"group of 2 processes does not form at 127.0.0.1:{port}") == 1
    assert len(outputs[0].splitlines()) == 1 and not any(outputs[1:])


def test_what_one_process_does_is_refused_in_several(launched):
    launched()
    refuse_several("compare")
    launched(WORLD_SIZE="2", RANK="1")
    with pytest.raises(ConfigError, match="compare: WORLD_SIZE=2 processes were started; expected one"):
        refuse_several("compare")
    for one_machine in (compare, sweep):
        with pytest.raises(ConfigError, match="WORLD_SIZE=2 processes were started; expected one"):
            one_machine({"task": "text"}, [])


def test_a_lost_process_is_one_sentence_and_other_errors_pass():
    with pytest.raises(DeviceError, match="a process of the group of 1 is gone"), explain_lost_processes():
        raise torch.distributed.DistBackendError("Connection closed by peer [127.0.0.1]:123")
    with pytest.raises(RuntimeError, match="another"), explain_lost_processes():
        raise RuntimeError("another")
