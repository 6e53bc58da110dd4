"""Processes of one program, as a launcher starts them, and what each of them has found out."""

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

COLLECTIVE_TIMEOUT_S = 60.0


def run(program: str, world_size: int, folder: Path, *arguments: str, seconds: float = 300) -> list[dict[str, Any]]:
    """Run ``program TARGET *arguments`` of this folder in several processes; return what each saved, by rank.

    If one fails or takes too long the test does, with what all of them printed.
    """
    processes = start(program, world_size, folder, *arguments)
    try:
        outputs = [process.communicate(timeout=seconds)[0] for process in processes]
    except subprocess.TimeoutExpired:
        for process in processes:
            process.kill()
        raise AssertionError("\n".join(process.communicate()[0] for process in processes)) from None
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * world_size, "\n".join(outputs)
    return [torch.load(folder / f"found-{rank}", weights_only=False) for rank in range(world_size)]


def start(program: str, world_size: int, folder: Path, *arguments: str) -> "list[subprocess.Popen[str]]":
    """Start the processes; each saves a dict under ``TARGET-rank``."""
    here = Path(__file__).parent
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    path = os.pathsep.join([str(here.parents[1]), str(here), str(here.parent / "training")])
    return [
        subprocess.Popen(
            [sys.executable, str(here / program), str(folder / "found"), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank), "PYTHONPATH": path},
        )
        for rank in range(world_size)
    ]
