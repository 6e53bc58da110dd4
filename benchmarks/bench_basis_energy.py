"""How much of a gradient does a basis hold: on the batch that it was fitted to, and on the batches that come next?

    scripts/bench basis_energy                      # 300 steps of GaLore and five more, some minutes on one core
    scripts/bench basis_energy --seed 1 --lr 2e-2

The model of `bench_learning.py` (byte-level Llama, hidden 128, 4 layers; 8 x 256 tokens of the English corpus) trains
with GaLore of rank 32. At each of the given steps bases of rank 32 are fitted to the gradients of that step's batch, by
an exact SVD, and stand still for the next five batches while training goes on. What is printed is the mean over the
layers of ``|core|^2 / |gradient|^2``:

- left, right: a basis of the matrix alone on this side.
- shared: one right basis for q, k, v, and one for gate, up, of the stacked gradients [G_q; G_k; G_v].
- shared, equal: the same, each gradient divided by its norm first, so that a small one counts as much as a large one.

The column `weight` is the matrix' share of the squared norm of the stacked gradient.
"""

import argparse
import itertools
from collections import defaultdict
from typing import Any

import torch
from bench_learning import BATCH, GAP, RANK, SEQ_LEN, STEPS, WARM_UP
from measurement import write_rows
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import featherweight as fw
from featherweight.linalg.basis import fit_left_basis
from featherweight.linalg.random import keyed_generator
from featherweight.linalg.subspace import MatrixSubspace
from featherweight.optim import param_groups
from featherweight.text.task import TextConfig, TextTask
from featherweight.training.schedule import Schedule, lr_factor

KINDS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
GROUPS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
NEXT = 5
BASES = ("left", "right", "shared", "shared, equal")

Bases = dict[tuple[int, str, str], MatrixSubspace]
"""By layer, kind of matrix and kind of basis."""


def gradients(model: nn.Module) -> dict[tuple[int, str], Tensor]:
    """Return the gradient of each matrix by layer and kind."""
    layers = model.model.layers
    found = {}
    for number, layer in enumerate(layers):
        for name, module in layer.named_modules():
            if (kind := name.rpartition(".")[2]) in KINDS:
                found[number, kind] = module.weight.grad.double()
    return found


def fit(grads: dict[tuple[int, str], Tensor]) -> Bases:
    """Fit all bases to the gradients of one batch."""

    def leading(matrix: Tensor) -> Tensor:
        return fit_left_basis(matrix, RANK, "svd", generator=keyed_generator(0))

    bases: Bases = {}
    for (layer, kind), grad_MN in grads.items():
        bases[layer, kind, "left"] = MatrixSubspace(left=leading(grad_MN))
        bases[layer, kind, "right"] = MatrixSubspace(right=leading(grad_MN.mT))
    for layer, group in itertools.product({layer for layer, _ in grads}, GROUPS):
        members = [grads[layer, kind] for kind in group]
        stacked = MatrixSubspace(right=leading(torch.cat(members).mT))
        equal = MatrixSubspace(right=leading(torch.cat([one / one.norm() for one in members]).mT))
        for kind in group:
            bases[layer, kind, "shared"], bases[layer, kind, "shared, equal"] = stacked, equal
    return bases


def energies(bases: Bases, grads: dict[tuple[int, str], Tensor]) -> dict[tuple[str, str], float]:
    """Return the mean energy over the layers by kind of matrix and kind of basis."""
    found = defaultdict(list)
    for (layer, kind, basis), subspace in bases.items():
        found[kind, basis].append(float(subspace.energy(grads[layer, kind])))
    return {key: sum(values) / len(values) for key, values in found.items()}


def weights(grads: dict[tuple[int, str], Tensor]) -> dict[str, float]:
    """Return the share of each matrix in the squared norm of its group, the mean over the layers."""
    layers = {layer for layer, _ in grads}
    found: dict[str, float] = {}
    for group in GROUPS:
        for kind in group:
            squares = {layer: [float(grads[layer, one].square().sum()) for one in group] for layer in layers}
            found[kind] = sum(each[group.index(kind)] / sum(each) for each in squares.values()) / len(layers)
    return found


def measure(seed: int, lr: float, steps: list[int]) -> list[dict[str, Any]]:
    """Train once and return a row for each step, kind of matrix and kind of basis."""
    config = TextConfig(model="tiny", corpus="english", seq_len=SEQ_LEN, max_held_out_tokens=10_000)
    task = TextTask(config, seed=seed)
    model = task.build_model()
    groups = param_groups(model, rank=RANK, update_proj_gap=GAP)
    optimizer = fw.optim.GaLoreAdamW(groups, lr=lr, weight_decay=0.0, seed=seed)
    shape = Schedule(warmup_steps=WARM_UP)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: lr_factor(shape, step, STEPS))
    present: list[tuple[int, Bases, dict[str, float], list[dict[tuple[str, str], float]]]] = []
    total = max(steps) + NEXT + 1
    for step, batch in enumerate(itertools.islice(task.batches("train", micro_batch_size=BATCH, seed=seed), total)):
        loss, items = task.loss(model, batch)
        (loss / items).backward()
        grads = gradients(model) if any(start <= step <= start + NEXT for start in steps) else {}
        if step in steps:
            present.append((step, fit(grads), weights(grads), []))
        for start, bases, _, seen in present:
            if start <= step <= start + NEXT:
                seen.append(energies(bases, grads))
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    rows = []
    for start, _, weight, (first, *later) in present:
        for kind, basis in itertools.product(KINDS, BASES):
            if (kind, basis) in first:
                after = sum(each[kind, basis] for each in later) / len(later)
                row = {"step": start, "matrix": kind, "basis": basis, "weight": round(weight.get(kind, 1.0), 4)}
                rows.append(row | {"refresh_batch": round(first[kind, basis], 4), "next_batches": round(after, 4)})
    return rows


def show(rows: list[dict[str, Any]]) -> None:
    """Print one table for each step: energy on the refresh batch, and on the next ones."""
    for step in sorted({row["step"] for row in rows}):
        table = Table("matrix", "weight", *BASES, title=f"step {step}: energy on the refresh batch / the next {NEXT}")
        for kind in KINDS:
            found = {row["basis"]: row for row in rows if (row["step"], row["matrix"]) == (step, kind)}
            pairs = [found.get(basis) for basis in BASES]
            cells = [f"{one['refresh_batch']:.3f} / {one['next_batches']:.3f}" if one else "" for one in pairs]
            table.add_row(kind, f"{found['left']['weight']:.2f}", *cells)
        Console(width=110).print(table)


def main() -> None:
    """Read the arguments, measure, write the CSV and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="of weights, data and bases")
    parser.add_argument("--lr", type=float, default=2e-2, help="learning rate of GaLore")
    parser.add_argument("--steps", type=int, nargs="+", default=[100, 200, 300], help="steps of the refreshes")
    arguments = parser.parse_args()
    rows = measure(arguments.seed, arguments.lr, arguments.steps)
    write_rows("basis_energy", [{"seed": arguments.seed, "lr": arguments.lr, **row} for row in rows])
    show(rows)


if __name__ == "__main__":
    main()
