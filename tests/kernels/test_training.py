"""A run with kernels ends with the weights and the optimizer state of a run without, bit by bit."""

import copy

import pytest
import torch
from torch import nn

pytest.importorskip("triton", minversion="3.9")  # interpreters before round a fused sum twice

import featherweight as fw
from featherweight import kernels
from featherweight.optim.policies import rules
from featherweight.optim.step import adam

if not kernels.is_interpreted():
    pytest.skip("needs TRITON_INTERPRET=1: test_interpreter.py runs this file", allow_module_level=True)

STEPS = 4


class Regressor(nn.Module):
    """A small model: two matrices that are projected, one that is not, biases and a norm."""

    def __init__(self):
        super().__init__()
        self.up, self.norm, self.down = nn.Linear(64, 96), nn.LayerNorm(96), nn.Linear(96, 64)
        self.head = nn.Linear(64, 45)

    def forward(self, x):
        return self.head(self.down(torch.tanh(self.norm(self.up(x)))))


def adamw(model, **options):
    return fw.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1, **options)


def galore(model, kind=fw.optim.GaLoreAdamW, **options):
    groups = fw.optim.param_groups(model, target_modules=["up", "down"], rank=48, update_proj_gap=3)
    return kind(groups, lr=1e-2, weight_decay=0.1, **options)


BF16, FP32 = torch.bfloat16, torch.float32
RUNS = {
    "adamw, 8-bit moments": (BF16, False, lambda model: adamw(model, state_bits=8), {"adamw"}),
    "adamw, dense moments": (BF16, False, adamw, {"adamw"}),
    "adamw, 16-bit moments": (BF16, False, lambda model: adamw(model, state_bits=16), {"adamw", "write"}),
    "adamw, float32, 8-bit moments": (FP32, False, lambda model: adamw(model, state_bits=8), {"adamw"}),
    "adamw, int8 weights": (BF16, True, lambda model: adamw(model, state_bits=8), {"adamw", "add"}),
    "galore, 8-bit moments": (BF16, False, lambda model: galore(model, state_bits=8), {"adamw", "write"}),
    "galore, dense moments": (FP32, False, galore, {"adamw"}),
    "q-galore": (BF16, True, lambda model: galore(model, fw.optim.QGaLoreAdamW), {"adamw", "add"}),
}
"""Dtype, whether weights are int8, optimizer, and the kernels that run."""


def train(model, is_int8, build, *, layerwise):
    """Train a copy and return all of its tensors and those of the optimizer."""
    model = copy.deepcopy(model)
    if is_int8:
        fw.apply(model, fw.Int8(exclude_modules=["head"]))
    optimizer = build(model)
    generator = torch.Generator().manual_seed(1)
    dtype = next(model.parameters()).dtype
    handle = fw.optim.layerwise(model, optimizer) if layerwise else None
    for _ in range(STEPS):
        x, y = (torch.randn(8, width, generator=generator).to(dtype) for width in (64, 45))
        (model(x) - y).float().square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    if handle is not None:
        handle.remove()
    state = optimizer.state_dict()["state"]
    tensors = {f"{index}.{name}": value for index, one in state.items() for name, value in one.items()}
    return {**model.state_dict(), **{name: value for name, value in tensors.items() if torch.is_tensor(value)}}


@pytest.mark.parametrize("way", ["ordinary", "in lists, as on a GPU", "layerwise"])
@pytest.mark.parametrize("name", RUNS)
def test_a_run_with_kernels_ends_with_the_bits_of_a_run_without(name, way, monkeypatch):
    def exact_root(values):  # rounded to nearest, as on CUDA: see test_adamw.py
        return values.double().sqrt().to(values.dtype)

    monkeypatch.setattr(rules, "root", exact_root)
    monkeypatch.setattr(adam, "_roots", lambda tensors: [exact_root(values) for values in tensors])
    if way.startswith("in lists"):
        monkeypatch.setattr(adam, "IN_PLACE_DEVICES", ())
    launched, launch = set(), kernels.launch

    def noting(kernel, *rest, **more):
        launched.add(kernel.fn.__name__.removesuffix("_kernel"))
        launch(kernel, *rest, **more)

    for module in (kernels.rounding, kernels.int8_update, kernels.adamw):
        monkeypatch.setattr(module, "launch", noting)
    dtype, is_int8, build, expected = RUNS[name]
    torch.manual_seed(0)
    model = Regressor().to(dtype)
    with kernels.use("torch"):
        without = train(model, is_int8, build, layerwise=way == "layerwise")
    assert not launched
    with kernels.use("triton"):
        with_kernels = train(model, is_int8, build, layerwise=way == "layerwise")
    assert launched == expected
    assert with_kernels.keys() == without.keys()
    # The handle of an int8 weight is a NaN in both.
    pairs = {key: (value.nan_to_num(), with_kernels[key].nan_to_num()) for key, value in without.items()}
    assert not [key for key, pair in pairs.items() if not torch.equal(*pair)]
