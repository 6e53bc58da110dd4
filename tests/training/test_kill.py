import json
import subprocess
import sys
from pathlib import Path

REFERENCE = Path(__file__).parents[1] / "reference"


def test_a_process_killed_while_it_writes_leaves_a_checkpoint_that_resumes_bit_by_bit_20_times(tmp_path):
    command = [sys.executable, str(REFERENCE / "kill_during_checkpoint.py"), str(tmp_path), "20"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    # A child spends most of its time writing; were it never hit there, this test would prove nothing.
    assert result["mid_write"] >= 3  # seen: 9 to 14 of 20
    assert result["step"] >= 20
    assert result["is_equal"]
