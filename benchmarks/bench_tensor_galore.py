"""Tensor-GaLore beside neuraloperator's and tensorly's, in one run: refreshes, resume, bytes, times.

`scripts/bench tensor_galore` needs neuraloperator 2.0.0 (with tensorly). Model: FNO, 8 x 8 modes, 24 channels, 4
layers on 16 x 16 (the small Darcy example of neuraloperator), rank 0.25. `--large` also times a
refresh of a complex 48 x 48 x 24 x 13 gradient, for which tensorly takes seconds.
"""

import argparse
import io
import pickle
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from measurement import take_turns, write_rows

from featherweight.linalg.tucker import squared_norm
from featherweight.linalg.tucker_fit import fit_tucker
from featherweight.optim import AdamW, TensorGaLoreAdamW
from featherweight.pde import FNO, param_groups

GAP, STEPS = 5, 16
COLUMNS = ("topic", "what", "refreshes", "spectral_state_bytes", "loads_weights_only", "step_ms", "over_torch_adamw")
COLUMNS += ("refresh_ms", "error", "spread")


def main() -> None:
    """Run all comparisons and write one row for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    rows = [*compare_behaviour(), *compare_steps(arguments.rounds)]
    rows += compare_refresh((32, 32, 16, 9), arguments.rounds)
    if arguments.large:
        rows += compare_refresh((48, 48, 24, 13), 1)
    for row in rows:
        print(row)
    write_rows("tensor_galore", [{column: row.get(column, "") for column in COLUMNS} for row in rows])


def model_and_data() -> tuple[FNO, torch.Tensor]:
    """Return the model and a batch of 32."""
    torch.manual_seed(0)
    model = FNO(n_modes=(8, 8), in_channels=1, out_channels=1, hidden_channels=24, n_layers=4)
    return model, torch.randn(32, 1, 16, 16)


def theirs(model: FNO) -> torch.optim.Optimizer:
    """Return neuraloperator's optimizer on the spectral weights."""
    from neuralop.training.adamw import AdamW as TheirAdamW

    spectral = [p for p in model.parameters() if p.is_complex()]
    rest = [p for p in model.parameters() if not p.is_complex()]
    return TheirAdamW(rest, galore_params=spectral, galore_rank=0.25, galore_update_proj_gap=GAP, galore_scale=1.0)


def ours(model: FNO, **options: Any) -> TensorGaLoreAdamW:
    """Return ours, with ranks counted as tensorly does."""
    keys = {"rank": 0.25, "rank_counts": "tensorly", "update_proj_gap": GAP, "stagger": False, "scale": 1.0}
    keys |= {"proj_type": "tucker", "residual": None, **options}  # as theirs
    return TensorGaLoreAdamW(param_groups(model, **keys))


def train(model: FNO, optimizer: torch.optim.Optimizer, x: torch.Tensor, steps: int) -> None:
    """Make some steps on a fixed batch."""
    for _ in range(steps):
        optimizer.zero_grad()
        (model(x) - x.roll(1, 2)).square().mean().backward()
        optimizer.step()


def compare_behaviour() -> list[dict[str, Any]]:
    """Count decompositions, measure state bytes, and try to resume with `weights_only=True`."""
    import neuralop.training.tensor_galore_projector as projector

    rows = []
    for name, build in (("neuraloperator 2.0.0", theirs), ("featherweight", ours)):
        model, x = model_and_data()
        optimizer = build(model)
        calls = 0
        real = projector.tucker

        def counting(*arguments: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            return real(*arguments, **options)  # noqa: B023

        projector.tucker = counting
        train(model, optimizer, x, STEPS)
        projector.tucker = real
        spectral = [p for p in model.parameters() if p.is_complex()]
        held = [value for p in spectral for value in optimizer.state[p].values()]
        if name == "featherweight":
            calls = sum(int(optimizer.state[p]["refresh_count"]) for p in spectral)
            state_bytes = sum(value.nbytes for value in held)
        else:
            factors = [u for p in spectral for u in optimizer.state[p]["projector"].proj_tensor]
            state_bytes = sum(value.nbytes for value in [*held, *factors] if isinstance(value, torch.Tensor))
        buffer = io.BytesIO()
        torch.save(optimizer.state_dict(), buffer)
        buffer.seek(0)
        try:
            torch.load(buffer, weights_only=True)
            resume = "yes"
        except pickle.UnpicklingError:
            resume = "UnpicklingError"
        rows.append(
            {"topic": f"{STEPS} steps, gap {GAP}, 4 tensors", "what": name, "refreshes": calls}
            | {"spectral_state_bytes": state_bytes, "loads_weights_only": resume}
        )
    return rows


def compare_steps(rounds: int) -> list[dict[str, Any]]:
    """Time training steps at gap 200: AdamW of torch and ours, Tensor-GaLore, neuraloperator's."""
    builders: dict[str, Callable[[FNO], torch.optim.Optimizer]] = {
        "torch AdamW": lambda model: torch.optim.AdamW(model.parameters()),
        "featherweight AdamW": lambda model: AdamW(model.parameters()),
        "featherweight Tensor-GaLore": lambda model: ours(model, update_proj_gap=200),
        "neuraloperator Tensor-GaLore": theirs,
    }
    runs = {}
    for name, build in builders.items():
        model, x = model_and_data()
        optimizer = build(model)
        train(model, optimizer, x, 2)  # the first step decomposes
        runs[name] = lambda model=model, optimizer=optimizer, x=x: train(model, optimizer, x, 10)
    timings = take_turns(runs, rounds)
    model, x = model_and_data()
    train(model, ours(model), x, 1)
    grads = [p.grad for p in model.parameters() if p.is_complex()]
    refresh = statistics.median(_seconds(lambda: [fit_tucker(g, (16, 16, 5, 3)) for g in grads]) for _ in range(5))
    base = timings["torch AdamW"].median_s
    rows = []
    for name, timing in timings.items():
        share = refresh / 200 * 10 if name == "featherweight Tensor-GaLore" else 0.0
        total = timing.median_s + share
        rows.append(
            {"topic": "training step, batch 32", "what": name, "step_ms": round(100 * total, 3)}
            | {"over_torch_adamw": round(total / base, 3), "spread": round(timing.spread, 3)}
        )
    return rows


def compare_refresh(shape: tuple[int, ...], rounds: int) -> list[dict[str, Any]]:
    """Time one decomposition of a complex tensor with decaying spectra."""
    import tensorly
    from tensorly.decomposition import tucker

    tensorly.set_backend("pytorch")
    generator = torch.Generator().manual_seed(0)
    grad = torch.randn(shape, dtype=torch.complex64, generator=generator)
    for mode, size in enumerate(shape):
        decay = torch.arange(1, size + 1).float() ** -0.5
        grad = grad * decay.view(-1, *[1] * (len(shape) - 1 - mode))
    ranks = tuple(round(0.7 * n) for n in shape)
    found: dict[str, Any] = {}

    def fit_theirs() -> None:
        core, factors = tucker(grad, rank=list(ranks), init="svd", n_iter_max=10)
        found["tensorly"] = tensorly.tucker_to_tensor((core, factors))

    def fit_ours() -> None:
        fit = fit_tucker(grad, ranks)
        found["featherweight"] = fit.subspace.project_back(fit.core)

    timings = take_turns({"tensorly": fit_theirs, "featherweight": fit_ours}, rounds, warm_up=min(1, rounds - 1))
    total = squared_norm(grad) ** 0.5
    return [
        {
            "topic": f"decomposition of complex {shape} to {ranks}",
            "what": name,
            "refresh_ms": round(1e3 * timing.median_s, 1),
            "error": round(squared_norm(grad - found[name]) ** 0.5 / total, 5),
            "spread": round(timing.spread, 3),
        }
        for name, timing in timings.items()
    ]


def _seconds(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
