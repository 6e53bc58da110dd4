import json

import pytest
import two_processes


# Mutation: a gradient that is written by hand, or that arrives once per chunk, is not reduced or reduced too early.
@pytest.mark.slow  # 20 s of two processes
@pytest.mark.parametrize("options", [{}, {"tokenwise": True, "checkpoint": "offload"}], ids=str)
@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_gradients_of_two_processes_equal_those_of_one(kind, options, tmp_path):
    for output in two_processes.run("data_parallel.py", str(tmp_path / "store"), kind, json.dumps(options)):
        # float32 sums in another order, over processes too: some 1e-7 of the largest entry.
        assert float(output.split("worst=")[1]) <= 1e-6, output
