import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import featherweight as fw

SCRIPT = Path(__file__).parents[2] / "reference" / "compress_large.py"


@pytest.mark.slow  # three minutes; 2 GB of disk
def test_matrices_of_seven_billion_parameters_are_compressed_within_eight_gigabytes(tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(SCRIPT.parents[2])}
    command = [sys.executable, str(SCRIPT), str(tmp_path), "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=1500, env=environment)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)

    assert result["peak_bytes"] < 8e9
    assert result["rank reduction"] == pytest.approx(0.5, abs=1e-4)
    files = sum(path.stat().st_size for path in (tmp_path / "small").glob("*.safetensors"))
    assert result["bytes after"] <= files < result["bytes after"] + 100_000 < result["bytes before"]
    assert fw.load_low_rank(tmp_path / "small").model.layers[0].mlp.up_proj.rank < 4096
