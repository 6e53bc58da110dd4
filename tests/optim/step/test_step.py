"""What every kind of step must keep to: its bytes, its state, and the check of a state that is loaded."""

import pytest
import torch
from torch import nn

from featherweight.errors import CheckpointError
from featherweight.optim import GaLoreAdamW, TensorGaLoreAdamW
from featherweight.optim.step.dense import DenseStep
from featherweight.optim.step.matrix import MatrixStep
from featherweight.optim.step.tensor import ComplexStep, TensorStep

KINDS = {
    "dense": (DenseStep, lambda: GaLoreAdamW([nn.Parameter(torch.ones(70))], rank=4)),
    "matrix": (MatrixStep, lambda: GaLoreAdamW([nn.Parameter(torch.ones(70, 90))], rank=4, state_bits=8, lazy=True)),
    "experts": (MatrixStep, lambda: GaLoreAdamW([nn.Parameter(torch.ones(3, 7, 9))], rank=4, residual="fira")),
    "tensor": (TensorStep, lambda: TensorGaLoreAdamW([nn.Parameter(torch.ones(9, 8, 7, 6))], sparse_ratio=0.1)),
    "complex": (ComplexStep, lambda: TensorGaLoreAdamW([nn.Parameter(torch.ones(5, dtype=torch.complex64))])),
}


@pytest.fixture(params=KINDS)
def made(request):
    kind, build = KINDS[request.param]
    optimizer = build()
    (parameter,) = optimizer.param_groups[0]["params"]
    step, member = optimizer.step_of(parameter), optimizer.member(parameter, optimizer.param_groups[0])
    assert type(step) is kind
    return step, member


def test_bytes_are_known_before_the_state_exists_and_are_those_of_its_tensors(made):
    step, member = made
    before = step.nbytes({}, member.group)
    step.create_state(member)
    assert before == step.nbytes(member.state, member.group) == sum(part.nbytes for part in member.state.values())


def test_a_state_of_its_own_is_accepted_and_any_other_is_refused_by_name(made):
    step, member = made
    step.create_state(member)
    step.check_state("test", dict(member.state), member.group)
    for key, value in member.state.items():
        for wrong in (value.double() if value.dtype != torch.float64 else value.float(), value.unsqueeze(0)):
            with pytest.raises(CheckpointError, match=f"has {key}="):
                step.check_state("test", {**member.state, key: wrong}, member.group)
        with pytest.raises(CheckpointError, match=f"has {key}=nothing"):
            step.check_state("test", {k: v for k, v in member.state.items() if k != key}, member.group)
