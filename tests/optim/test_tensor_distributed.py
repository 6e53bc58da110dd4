"""Tensor-GaLore over two processes."""

import runpy
from pathlib import Path

import pytest
import torch
import two_processes

PROGRAM = Path(__file__).parents[1] / "reference" / "tensor_data_parallel.py"


@pytest.mark.slow
def test_two_processes_hold_equal_weights_which_are_those_of_one_with_the_whole_batch(tmp_path):
    two_processes.run(PROGRAM.name, str(tmp_path / "store"), str(tmp_path / "weights"), seconds=240)
    one, two = (torch.load(tmp_path / f"weights-{rank}") for rank in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one)
    reference = runpy.run_path(str(PROGRAM), run_name="reference")
    model, optimizer = reference["build"]()
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for step in range(30):
        x, y = reference["batch"](step)
        (model(x) - y).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    for name, tensor in model.state_dict().items():
        moved = float((tensor - start[name]).abs().max())
        # Sums in another order; weights move by 0.1 to 0.3.
        assert float((one[name] - tensor).abs().max()) < 1e-5 * moved, name
