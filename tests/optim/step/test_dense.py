"""Steps without a subspace."""

import torch
from matrix_steps import gradients, parameter, run

from featherweight.optim import AdamW


def test_the_sliced_path_equals_the_fused_kernel(monkeypatch):
    monkeypatch.setattr("featherweight.optim.step.adam.fits_torch_kernel", lambda *_: False)
    monkeypatch.setattr("featherweight.optim.step.weight_update.SLICE_ELEMENTS_CPU", 100)
    ours, theirs = parameter(33, 7, dtype=torch.float64), parameter(33, 7, dtype=torch.float64)
    grads = gradients((33, 7), 20, dtype=torch.float64)
    result = run(AdamW([ours], lr=0.01, weight_decay=0.1), ours, grads)
    expected = run(torch.optim.AdamW([theirs], lr=0.01, weight_decay=0.1), theirs, grads)
    torch.testing.assert_close(result, expected, rtol=1e-12, atol=1e-12)
