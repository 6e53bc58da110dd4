"""Tensor-GaLore over two processes."""

import json
import math
import runpy
from pathlib import Path

import pytest
import torch
import two_processes

PROGRAM = Path(__file__).parents[2] / "reference" / "tensor_data_parallel.py"


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


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"rank": "auto", "rank_budget": 0.3},
        {"sparse_ratio": 0.05},
        {"proj_type": "tucker_channels", "residual": "auto", "residual_weight": 1.0},
    ],
)
def test_two_processes_exchange_cores_and_train_as_one_with_the_whole_batch(options, tmp_path):
    # Mutations: bases that a process fits to its own gradients, cores that are not averaged, gradients sent every step.
    arguments = (str(tmp_path / "store"), str(tmp_path / "run"), json.dumps(options))
    two_processes.run("tensor_core_sums.py", *arguments, seconds=240)
    one, two = (torch.load(tmp_path / f"run-{rank}") for rank in range(2))
    assert all(torch.equal(one["weights"][name], two["weights"][name]) for name in one["weights"])
    # Without a reducer, and in buckets that keep gradients.
    assert [text.startswith("layerwise: world_size=2 processes train this") for text in one["refusals"]] == [True] * 2
    reference = runpy.run_path(str(PROGRAM.with_name("tensor_core_sums.py")), run_name="reference")
    model, optimizer = reference["build"](options)
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for step in range(reference["STEPS"]):
        x, y = reference["batch"](step)
        (model(x) - y).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    for name, tensor in model.state_dict().items():
        moved = float((tensor - start[name]).abs().max())
        # Sums in another order; weights move by 0.1 to 0.3.
        assert float((one["weights"][name] - tensor).abs().max()) < 1e-5 * moved, name
    layouts = [layout for layout in optimizer.layouts.values() if layout.rank is not None]
    assert one["ranks"] == [list(layout.plan.ranks) for layout in layouts]
    plans = [layout.plan for layout in layouts]
    whole = sum(p.numel() * (2 if p.is_complex() else 1) for p in model.parameters())
    saved = [
        0 if each.residual else 2 * (math.prod(each.shape) - math.prod(each.core_shape) - each.sparse_numel)
        for each in plans
    ]
    # Two tensors whose refreshes are staggered: one whole gradient at each refresh, cores otherwise; with a residual
    # whole gradients always.
    assert one["sent"][0] == whole and min(one["sent"]) == whole - sum(saved)
    assert one["sent"].count(whole - sum(saved)) >= reference["STEPS"] - 2 * reference["STEPS"] // reference["GAP"]
