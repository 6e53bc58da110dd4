"""Optimizers in the middle of a refresh interval, and checkpoints of them that earlier code wrote.

`fixtures/checkpoints.pt` was written by the code before the optimizers moved into rooms, later optimizers by their
first code (`python tests/reference/optimizer_checkpoints.py PATH` adds what the file lacks). Weights and gradients are
whole numbers over powers of two that follow from their positions, so that nothing but states needs to be stored.
"""

import hashlib
import platform
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import featherweight as fw

FIXTURE = Path(__file__).parents[1] / "optim" / "fixtures" / "checkpoints.pt"
STEPS_BEFORE, STEPS_AFTER = 6, 5
GAP = 4
SAMPLE = 64


class Case(NamedTuple):
    """One optimizer on the parameters that it needs."""

    optimizer: Callable[..., Any]
    options: dict[str, Any]
    shapes: tuple[tuple[int, ...], ...]
    dtype: torch.dtype = torch.float32
    layerwise: dict[str, Any] | None = None


MATRICES = ((16, 1024), (24, 24), (16,))
STACKED = ((3, 24, 32), (24, 24), (16,))
TENSORS = ((12, 12, 8, 5), (6, 10), (16,))
LOW: dict[str, Any] = {"rank": 4, "update_proj_gap": GAP}
PAPER = {"update_proj_gap": GAP, "proj_type": "tucker", "residual": None, "residual_weight": 0.3, "scale": 1.0}

CASES: dict[str, Case] = {
    "adamw": Case(fw.optim.AdamW, {}, ((32, 160), (16,))),
    "adamw_8bit": Case(fw.optim.AdamW, {"state_bits": 8}, ((32, 160), (16,))),
    "adamw_4bit": Case(fw.optim.AdamW, {"state_bits": 4}, ((32, 160), (16,))),
    "adamw_bfloat16": Case(fw.optim.AdamW, {"state_bits": 16}, ((32, 160), (16,)), torch.bfloat16),
    "galore": Case(fw.optim.GaLoreAdamW, LOW, MATRICES),
    "galore_8bit": Case(fw.optim.GaLoreAdamW, {**LOW, "state_bits": 8, "basis_bits": 16}, MATRICES),
    "galore_4bit": Case(fw.optim.GaLoreAdamW, {**LOW, "state_bits": 4, "basis_bits": 8}, MATRICES),
    "galore_bfloat16": Case(fw.optim.GaLoreAdamW, {**LOW, "state_bits": 16}, STACKED, torch.bfloat16),
    "galore_float64": Case(fw.optim.GaLoreAdamW, LOW, STACKED, torch.float64),
    "galore_both_sides": Case(fw.optim.GaLoreAdamW, {**LOW, "proj_type": "full", "weight_decay": 0.1}, STACKED),
    "galore_min_memory": Case(fw.optim.GaLoreAdamW, {**LOW, "proj_type": "min_memory"}, ((16, 64), (24, 24))),
    "galore_official": Case(
        fw.optim.GaLoreAdamW,
        {
            **LOW,
            "moment_policy": "keep",
            "basis_method": "svd",
            "stagger": False,
            "eps_mode": "official",
            "decay_order": "after",
            "weight_decay": 0.1,
        },
        STACKED,
    ),
    "galore_random": Case(fw.optim.GaLoreAdamW, {**LOW, "basis_method": "random", "moment_policy": "rotate"}, STACKED),
    "galore_sgd": Case(fw.optim.GaLoreAdamW, {**LOW, "rule": "sgd", "moment_policy": "reset"}, STACKED),
    "galore_fira": Case(fw.optim.GaLoreAdamW, {**LOW, "residual": "fira", "early_refresh": True}, STACKED),
    "galore_lazy": Case(fw.optim.GaLoreAdamW, {**LOW, "update_proj_gap": 2, "lazy": True}, STACKED),
    "q_galore": Case(fw.optim.QGaLoreAdamW, LOW, MATRICES),
    "q_galore_bfloat16": Case(fw.optim.QGaLoreAdamW, {**LOW, "basis_renorm": True}, STACKED, torch.bfloat16),
    "galore_adafactor": Case(fw.optim.GaLoreAdafactor, LOW, STACKED),
    "galore_adafactor_8bit": Case(fw.optim.GaLoreAdafactor, {**LOW, "state_bits": 8}, ((16, 1024), (16,))),
    "galore_adafactor_without_momentum": Case(fw.optim.GaLoreAdafactor, {**LOW, "beta1": None}, STACKED),
    "apollo": Case(fw.optim.Apollo, LOW, STACKED),
    "apollo_svd": Case(fw.optim.Apollo, {**LOW, "basis_method": "svd", "moment_policy": "reset"}, STACKED),
    "apollo_mini": Case(fw.optim.ApolloMini, {"update_proj_gap": GAP}, STACKED),
    "fira": Case(fw.optim.Fira, LOW, STACKED),
    "fira_8bit": Case(fw.optim.Fira, {**LOW, "state_bits": 8, "basis_bits": 8}, ((16, 1024), (16,))),
    "ldadam": Case(fw.optim.LDAdamW, {"rank": 4}, STACKED),
    "ldadam_error_feedback": Case(fw.optim.LDAdamW, {"rank": 4, "error_feedback": True}, STACKED),
    "ldadam_every_third_step": Case(
        fw.optim.LDAdamW, {"rank": 4, "update_proj_gap": 3, "error_feedback": True}, STACKED
    ),
    "gum": Case(fw.optim.GUM, {**LOW, "seed": 1}, STACKED),
    "gum_in_full_periods": Case(fw.optim.GUM, {**LOW, "full_rank_probability": 0.6}, ((16, 32), (24, 24), (16,))),
    "gum_8bit": Case(fw.optim.GUM, {**LOW, "state_bits": 8}, ((16, 1024), (16,))),
    "tensor_galore": Case(fw.optim.TensorGaLoreAdamW, PAPER | {"rank": 0.25}, TENSORS, torch.complex64),
    "tensor_galore_real": Case(fw.optim.TensorGaLoreAdamW, PAPER | {"rank": 0.25}, ((12, 12, 3, 3), (16,))),
    "tensor_galore_8bit": Case(
        fw.optim.TensorGaLoreAdamW, PAPER | {"rank": 0.5, "state_bits": 8}, ((16, 16, 8, 5), (16,)), torch.complex64
    ),
    "tensor_galore_auto": Case(
        fw.optim.TensorGaLoreAdamW, PAPER | {"rank": "auto", "skip_tol": 0.5}, TENSORS, torch.complex64
    ),
    "tensor_galore_slices": Case(
        fw.optim.TensorGaLoreAdamW, PAPER | {"rank": 0.25, "proj_type": "slices", "moment_policy": "align"}, TENSORS
    ),
    "tensor_galore_select": Case(
        fw.optim.TensorGaLoreAdamW, PAPER | {"rank": 0.25, "proj_type": "select", "complex_mode": "real_pair"}, TENSORS
    ),
    "tensor_galore_matrix": Case(
        fw.optim.TensorGaLoreAdamW,
        PAPER | {"rank": 0.25, "proj_type": "matrix", "scale": "auto"},
        TENSORS,
        torch.complex64,
    ),
    "scale": Case(fw.optim.Scale, {}, ((16, 64), (24, 24), (16,))),
    "tensorgrad": Case(fw.optim.TensorGRaD, {"update_proj_gap": GAP}, TENSORS, torch.complex64),
    "tensorgrad_random": Case(
        fw.optim.TensorGRaD,
        {"update_proj_gap": GAP, "sparse_select": "randk", "sparse_order": "sparse_first"},
        TENSORS,
        torch.complex64,
    ),
    "galore_layerwise": Case(fw.optim.GaLoreAdamW, LOW, STACKED, layerwise={"max_grad_norm": 1.0}),
    "galore_layerwise_growth": Case(fw.optim.GaLoreAdamW, LOW, STACKED, layerwise={"clip": "norm_growth"}),
    "galore_accumulated": Case(
        fw.optim.GaLoreAdamW,
        LOW,
        STACKED,
        layerwise={"accumulation_steps": 2, "max_grad_norm": 1.0, "clip": "projected"},
    ),
    "ldadam_accumulated": Case(fw.optim.LDAdamW, {"rank": 4}, STACKED, layerwise={"accumulation_steps": 2}),
    "fira_accumulated": Case(fw.optim.Fira, LOW, STACKED, layerwise={"accumulation_steps": 2}),
    "tensor_galore_accumulated": Case(
        fw.optim.TensorGaLoreAdamW, PAPER | {"rank": 0.25}, TENSORS, torch.complex64, {"accumulation_steps": 2}
    ),
}


class Weights(nn.Module):
    """Parameters of a case; the loss has the gradients of a step, whatever the weights are."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.weights = nn.ParameterList(
            nn.Parameter(numbers(shape, 1 + index, case.dtype)) for index, shape in enumerate(case.shapes)
        )

    def forward(self, step: int) -> Tensor:
        """Return the sum of the products with the gradients of a step."""
        terms = [
            (p * numbers(tuple(p.shape), 100 * step + i, p.dtype).conj()).sum() for i, p in enumerate(self.weights)
        ]
        return torch.stack([term.real.float() if term.is_complex() else term.float() for term in terms]).sum()


def numbers(shape: tuple[int, ...], salt: int, dtype: torch.dtype) -> Tensor:
    """Return numbers in [-1/2, 1/2] of 7 bits, the same on every machine; their first axis has some strong rows."""
    is_complex = dtype.is_complex
    size = (*shape, 2) if is_complex else shape
    position = torch.arange(torch.Size(size).numel(), dtype=torch.int64) + 1
    mixed = (position * 2654435761 + salt * 40503) % 4294967291
    mixed = (mixed ^ (mixed >> 15)) * 2246822519 % 4294967291
    values = ((mixed >> 7) % 127 - 63).double().view(size) / 128
    values = values * (1 / 2 ** (torch.arange(size[0]) % 5)).view(-1, *[1] * (len(size) - 1))
    return torch.view_as_complex(values).to(dtype) if is_complex else values.to(dtype)


def run(case: Case, state: dict[str, Any] | None) -> Iterator[tuple[Weights, Any]]:
    """Yield model and optimizer after the first steps, and after further ones; with a state only the second time."""
    model = Weights(case)
    optimizer = case.optimizer(list(model.named_parameters()), lr=2**-6, **case.options)
    first = 0
    if state is not None:
        optimizer.load_state_dict(state)
        first = STEPS_BEFORE
    for start, stop in ((0, STEPS_BEFORE), (STEPS_BEFORE, STEPS_BEFORE + STEPS_AFTER)):
        if start < first:
            continue
        if start:  # so that the weights of the checkpoint need not be stored
            for fresh, parameter in zip(Weights(case).parameters(), model.parameters(), strict=True):
                parameter.data.copy_(fresh.data)
        _train(case, model, optimizer, range(start, stop))
        yield model, optimizer


def _train(case: Case, model: Weights, optimizer: Any, steps: range) -> None:
    if case.layerwise is None:
        for step in steps:
            optimizer.zero_grad()
            model(step).backward()
            optimizer.step()
        return
    with fw.optim.layerwise(model, optimizer, **case.layerwise) as handle:
        for step in steps:
            for micro_step in range(handle.accumulation_steps):
                model(step + 50 * micro_step).backward()


def digest(model: nn.Module) -> str:
    """Return a hash of all bits of the weights."""
    found = hashlib.sha256()
    for parameter in model.parameters():
        found.update(parameter.detach().contiguous().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def sample(model: nn.Module) -> Tensor:
    """Return some of the weights, evenly spread, as float64."""
    flat = [torch.view_as_real(p) if p.is_complex() else p for p in model.parameters()]
    values = torch.cat([p.detach().double().flatten() for p in flat])
    return values[:: max(1, len(values) // SAMPLE)].clone()


def machine() -> str:
    """Return what bits may depend on: processor and version of torch."""
    names = [line.split(":", 1)[1].strip() for line in _cpuinfo() if line.startswith("model name")]
    return (
        f"{names[0] if names else platform.processor()}, {torch.backends.cpu.get_cpu_capability()}, {torch.__version__}"
    )


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def main(path: str) -> None:
    """Write the checkpoints of the cases that the file lacks; those that are there stay what earlier code wrote."""
    torch.set_num_threads(1)
    written: dict[str, Any] = {"machine": machine(), "cases": {}}
    if Path(path).exists():
        written = torch.load(path, weights_only=True)
        if written["machine"] != machine():
            raise SystemExit(f"{path} was written on {written['machine']}: digests of other machines do not compare.")
    for name, case in CASES.items():
        if name in written["cases"]:
            continue
        states = run(case, None)
        _, optimizer = next(states)
        state = {key: _copied(value) for key, value in optimizer.state_dict().items()}
        model, _ = next(states)
        written["cases"][name] = {"state": state, "digest": digest(model), "sample": sample(model)}
    torch.save(written, path)


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {key: _copied(one) for key, one in value.items()}
    return [_copied(one) for one in value] if isinstance(value, list) else value


if __name__ == "__main__":
    main(sys.argv[1])
