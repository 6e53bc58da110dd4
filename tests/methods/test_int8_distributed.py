import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "reference" / "int8_data_parallel.py"


# Mutation: rounding from a generator of each process lets the weights drift apart at the first step.
@pytest.mark.slow  # two processes
def test_two_processes_of_data_parallel_hold_the_same_int8_weights_after_every_step(tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(SCRIPT.parents[2])}
    processes = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(rank), str(tmp_path / "store")],
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
    for (_, errors), process in zip(results, processes, strict=True):
        assert process.returncode == 0, errors
    one, other = (output.split() for output, _ in results)
    assert len(set(one)) == 6
    assert one == other
