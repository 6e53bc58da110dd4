"""Runs the comparisons of kernels and twins in Triton's interpreter, which needs a process of its own."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", minversion="3.9")  # interpreters before round a fused sum twice

HERE = Path(__file__).parent
COMPARED = ("test_rounding.py", "test_int8_update.py", "test_adamw.py", "test_training.py")


@pytest.mark.slow
@pytest.mark.skipif("TRITON_INTERPRET" in os.environ, reason="this process interprets already")
def test_kernels_equal_their_twins_in_tritons_interpreter():
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *(str(HERE / name) for name in COMPARED)],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        cwd=HERE.parent.parent,
        capture_output=True,
        text=True,
        check=False,
        timeout=1200,
    )
    assert done.returncode == 0, done.stdout[-10_000:] + done.stderr[-2000:]
    # Mutation: if the files were skipped in the child too, nothing would be compared.
    assert re.search(r"\d+ passed", done.stdout) and "skipped" not in done.stdout
