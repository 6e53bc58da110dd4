import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "reference" / "data_parallel.py"


# Mutation: a gradient that is written by hand, or that arrives once per chunk, is not reduced or reduced too early.
@pytest.mark.slow  # 20 s of two processes
@pytest.mark.parametrize("options", [{}, {"tokenwise": True, "checkpoint": "offload"}], ids=str)
@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_gradients_of_two_processes_equal_those_of_one(kind, options, tmp_path):
    command = [sys.executable, str(SCRIPT)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(SCRIPT.parents[2])}
    processes = [
        subprocess.Popen(
            [*command, str(rank), str(tmp_path / "store"), kind, json.dumps(options)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for rank in range(2)
    ]
    try:
        results = [process.communicate(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()

    for (output, errors), process in zip(results, processes, strict=True):
        assert process.returncode == 0, errors
        # float32 sums in another order, over processes too: some 1e-7 of the largest entry.
        assert float(output.split("worst=")[1]) <= 1e-6, output
