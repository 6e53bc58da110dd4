import re

import pytest
import two_processes


@pytest.mark.slow  # two processes
def test_two_processes_grow_the_ranks_of_one(tmp_path):
    for output in two_processes.run("growing_ranks.py", str(tmp_path / "store")):
        assert "same=True" in output and "equal=True" in output, output
        assert int(re.search(r"grown=(\d+)", output)[1]) > 1
        # float32 sums in another order through ten updates of size 0.1.
        assert float(re.search(r"worst=(\S+)", output)[1]) <= 1e-5, output
