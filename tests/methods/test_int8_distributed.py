import pytest
import two_processes


# Mutation: rounding from a generator of each process lets the weights drift apart at the first step.
@pytest.mark.slow  # two processes
def test_two_processes_of_data_parallel_hold_the_same_int8_weights_after_every_step(tmp_path):
    one, other = (output.split() for output in two_processes.run("int8_data_parallel.py", str(tmp_path / "store")))
    assert len(set(one)) == 6
    assert one == other
