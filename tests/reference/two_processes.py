"""Two processes of one program, and what they print."""

import os
import subprocess
import sys
from pathlib import Path


def run(program: str, *arguments: str, seconds: float = 180) -> list[str]:
    """Run ``program RANK *arguments`` of this folder as two processes at once, one thread each.

    Returns:
        Standard output of rank 0 and 1. If one fails, the test does, with its standard error.
    """
    folder = Path(__file__).parent
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(folder.parents[1])}
    processes = [
        subprocess.Popen(
            [sys.executable, str(folder / program), str(rank), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for rank in range(2)
    ]
    try:
        results = [process.communicate(timeout=seconds) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for (_, errors), process in zip(results, processes, strict=True):
        assert process.returncode == 0, errors
    return [output for output, _ in results]
