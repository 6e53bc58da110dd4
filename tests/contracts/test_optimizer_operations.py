"""Optimizer x operation: every cell works or is refused with a sentence, and none dies by a signal."""

import json
import os
import subprocess
import sys
from pathlib import Path

import optimizer_operations
import pytest

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="cells that might die need a fork of their own"),
    pytest.mark.xdist_group("optimizer operations"),  # one process makes the whole table
]

CELLS = {f"{operation.__name__}-{name}": expected for operation, name, expected in optimizer_operations.cells()}


@pytest.fixture(scope="module")
def found():
    """What came of each cell: one process for the table, a fork of it for each cell."""
    script = Path(optimizer_operations.__file__)
    done = subprocess.run(
        [sys.executable, str(script)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"},
        cwd=script.parent.parent.parent,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(json.loads(line) for line in done.stdout.splitlines())


@pytest.mark.parametrize("cell", CELLS)
def test_an_operation_works_or_is_refused_with_a_sentence(cell, found):
    # Mutation: any cell without its comparison trains wrongly, raises an error of torch, or dies by a signal.
    assert found[cell].startswith(CELLS[cell]), found[cell]
    if CELLS[cell] == "refused":
        assert found[cell].endswith((".", ")")) and "; expected " in found[cell]
