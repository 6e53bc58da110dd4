import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "reference" / "growing_ranks.py"


@pytest.mark.slow  # two processes
def test_two_processes_grow_the_ranks_of_one(tmp_path):
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
        results = [process.communicate(timeout=180) for process in processes]
    finally:
        for process in processes:
            process.kill()

    for (output, errors), process in zip(results, processes, strict=True):
        assert process.returncode == 0, errors
        assert "same=True" in output and "equal=True" in output, output
        assert int(re.search(r"grown=(\d+)", output)[1]) > 1
        # float32 sums in another order through ten updates of size 0.1.
        assert float(re.search(r"worst=(\S+)", output)[1]) <= 1e-5, output
