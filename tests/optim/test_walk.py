"""How many files of the package a reader meets who follows one matrix gradient through an optimizer step."""

import inspect
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import featherweight as fw
from featherweight.kernels import native

PACKAGE = Path(fw.__file__).parent
WALK = [
    *("optim/low_rank.py", "optim/step/check.py", "optim/step/matrix.py", "optim/step/adam.py"),
    *(
        "optim/step/matrix_layout.py",
        "optim/step/layout.py",
        "optim/step/weight_update.py",
        "linalg/subspace.py",
        "kernels/native.py",
    ),
]
CODES = ["quant/storage.py", "quant/blockwise.py"]
"""Where the values of codes stand, which the kernel takes with moments of 8 bits."""


def calls(function):
    """Return (file of the caller, file of the called function) for all calls between files of the package."""
    found = set()

    def look(frame, event, _):
        if event == "call" and frame.f_code.co_filename.startswith(str(PACKAGE)):
            caller = frame.f_back
            while caller is not None and not caller.f_code.co_filename.startswith(str(PACKAGE)):
                caller = caller.f_back
            files = (None if each is None else Path(each.f_code.co_filename) for each in (caller, frame))
            found.add(tuple(None if file is None else str(file.relative_to(PACKAGE)) for file in files))

    before = sys.getprofile()
    sys.setprofile(look)
    try:
        function()
    finally:
        sys.setprofile(before)
    return {(caller, called) for caller, called in found if caller != called}


@pytest.mark.skipif(not native.is_available(), reason="the walk ends in the C kernel, and no C compiler is found")
@pytest.mark.parametrize("bits", [32, 8])
@pytest.mark.parametrize("shape", [(96, 120), (120, 96)])
def test_a_step_of_a_matrix_visits_nine_files_and_no_call_goes_back_up(shape, bits):
    # Mutation: a forwarder in a file of its own; a policy that calls the matrix which has called it.
    weight = nn.Parameter(torch.ones(shape))
    optimizer = fw.optim.GaLoreAdamW([weight], rank=40, update_proj_gap=100, state_bits=bits)
    for _ in range(2):
        weight.grad = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        optimizer.step()
    step = inspect.unwrap(type(optimizer).step)  # without the hooks that anybody may have hung on all optimizers
    with torch.no_grad():
        found = calls(lambda: step(optimizer))
    walk = WALK if bits == 32 else [*WALK, *CODES]
    assert {called for _, called in found} <= set(walk)
    assert all(caller is None or walk.index(caller) < walk.index(called) for caller, called in found)
