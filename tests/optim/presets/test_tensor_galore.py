"""Tensor-GaLore as a preset: names, options, groups, resumed runs."""

import io
import subprocess
import sys
import textwrap

import pytest
import torch
from tensor_steps import build, gradients, train, weight_of
from torch import nn

from featherweight.errors import CheckpointError, ConfigError
from featherweight.optim import TensorGaLoreAdamW, tensor_param_groups


@pytest.mark.parametrize("options", [
    {}, {"proj_type": "slices"}, {"proj_type": "select"}, {"proj_type": "matrix"}, {"state_bits": 8},
    {"state_bits": 16}, {"sparse_ratio": 0.05}, {"sparse_ratio": 0.05, "sparse_select": "randk"}, {"skip_tol": 0.1},
    {"complex_mode": "real_pair"}, {"moment_policy": "align"}, {"basis_method": "subspace"}, {"rank": "auto"},
    {"rank": "auto", "proj_type": "tucker_channels", "state_bits": 8, "sparse_ratio": 0.05},
])  # fmt: skip
def test_resume_from_a_file_of_plain_tensors_is_bitwise_across_a_refresh(options):
    shape = (16, 16, 8, 5)
    grads = gradients(12, shape, torch.complex64)
    weight = weight_of(shape, torch.complex64)
    optimizer = build(weight, **options)
    train(optimizer, weight, grads[:6])
    buffer = io.BytesIO()
    torch.save((weight.detach(), optimizer.state_dict()), buffer)
    buffer.seek(0)
    saved, state = torch.load(buffer, weights_only=True)
    twin = nn.Parameter(saved)
    resumed = build(twin, **options)
    resumed.load_state_dict(state)
    train(optimizer, weight, grads[6:])
    train(resumed, twin, grads[6:])
    assert torch.equal(weight, twin)
    with pytest.raises(CheckpointError, match="'parameter 0' has"):
        build(weight_of((16, 16, 8, 4), torch.complex64), **options).load_state_dict(state)


def test_states_go_through_safetensors():
    from safetensors.torch import load, save

    weight = weight_of(dtype=torch.complex64)
    optimizer = build(weight, sparse_ratio=0.05)
    train(optimizer, weight, gradients(2, dtype=torch.complex64))
    state = dict(optimizer.state[weight])
    again = load(save({name: tensor.contiguous() for name, tensor in state.items()}))
    assert all(torch.equal(again[name], tensor) and again[name].dtype == tensor.dtype for name, tensor in state.items())


@pytest.mark.slow
def test_resume_in_a_new_process_is_bitwise(tmp_path):
    program = textwrap.dedent(
        """
        import sys, torch
        from featherweight.optim import TensorGRaD
        start, stop, source, target = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
        weight = torch.nn.Parameter(torch.zeros(8, 8, 6, 4, dtype=torch.complex64))
        optimizer = TensorGRaD([weight], lr=1e-2, min_numel=1, update_proj_gap=4, seed=3)
        if source != "-":
            saved = torch.load(source, weights_only=True)
            weight.data.copy_(saved["weight"])
            optimizer.load_state_dict(saved["optimizer"])
        for step in range(start, stop):
            noise = torch.Generator().manual_seed(step)
            weight.grad = torch.randn(weight.shape, dtype=weight.dtype, generator=noise)
            optimizer.step()
        torch.save({"weight": weight.data, "optimizer": optimizer.state_dict()}, target)
        """
    )
    a, b, c = (str(tmp_path / name) for name in "abc")
    for arguments in (("0", "16", "-", a), ("0", "6", "-", b), ("6", "16", b, c)):
        subprocess.run([sys.executable, "-c", program, *arguments], check=True)
    assert torch.equal(torch.load(a)["weight"], torch.load(c)["weight"])


# ---- ranks that follow the first gradient


@pytest.mark.parametrize(("options", "name"), [
    ({"rank": 0.0}, "rank"), ({"rank": "automatic"}, "rank"), ({"rank_budget": 0.0}, "rank_budget"),
    ({"rank": (0.5, "a", 1, 1)}, "rank"), ({"proj_type": "std"}, "proj_type"),
    ({"scale": "big"}, "scale"), ({"rank_counts": "all"}, "rank_counts"), ({"sparse_ratio": 1.0}, "sparse_ratio"),
    ({"basis_method": "svd"}, "basis_method"), ({"moment_policy": "forget"}, "moment_policy"),
    ({"rule": "muon"}, "rule"), ({"min_numel": 0}, "min_numel"), ({"complex_mode": "phase"}, "complex_mode"),
])  # fmt: skip
def test_wrong_options_are_named(options, name):
    with pytest.raises(ConfigError, match=f"{name}="):
        TensorGaLoreAdamW([weight_of()], **options)


def test_groups_hold_tensors_and_the_rest():
    model = nn.ModuleDict({"conv": nn.Conv2d(16, 16, 3), "point": nn.Conv1d(64, 64, 1), "line": nn.Linear(64, 64)})
    groups = tensor_param_groups(model, rank=0.5)
    assert [name for name, _ in groups[0]["params"]] == ["conv.weight"] and groups[0]["scale"] == "auto"
    assert len(groups[1]["params"]) == 5
    with pytest.raises(ConfigError, match="matches no module"):
        tensor_param_groups(model, target_modules=["spectral"])
    assert len(tensor_param_groups(model, exclude_modules=["conv"])) == 1
    report = str(TensorGaLoreAdamW(groups).report())
    assert "tucker" in report and "conv.weight" in report
