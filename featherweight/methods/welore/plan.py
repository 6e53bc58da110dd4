"""What WeLore would do to a model, decided before anything is changed: a rank and a storage for each matrix.

The plan needs shapes and spectra only, so it is the same for a model in memory and for one that is read from files.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn

from featherweight.errors import ConfigError
from featherweight.linalg import spectrum as sp
from featherweight.methods.low_rank_model import low_rank_modules
from featherweight.methods.options import WeLoreOptions
from featherweight.nn.low_rank_linear import (
    Storage,
    is_linear,
    matrix_of,
    smallest_storage,
    storage_bytes,
    storage_numel,
)
from featherweight.nn.module_tree import shared_parameters
from featherweight.selection import select_modules


@dataclass(frozen=True)
class Target:
    """A matrix that may be cut."""

    rows: int
    columns: int
    itemsize: int

    @property
    def full_rank(self) -> int:
        """Q."""
        return min(self.rows, self.columns)


@dataclass(frozen=True)
class Entry:
    """What becomes of one matrix."""

    name: str
    target: Target
    rank: int
    storage: Storage
    is_lrc: bool
    is_cut: bool
    """Whether the rank is below the full one; else the matrix stays as it is, bit by bit."""
    relative_error: float
    """Norm of what is dropped over that of the matrix; of their products with the inputs when these are known."""

    @property
    def numel(self) -> int:
        """Numbers that are stored."""
        return storage_numel(self.target.rows, self.target.columns, self.rank, self.storage)

    @property
    def nbytes(self) -> int:
        """Bytes that are stored, indices included."""
        return storage_bytes(self.target.rows, self.target.columns, self.rank, self.storage, self.target.itemsize)


@dataclass
class Plan:
    """The decisions for a whole model."""

    entries: dict[str, Entry]
    skipped: dict[str, str]
    """Matrices that were selected but are left alone, with the reason."""
    threshold: float | None
    other_numel: int
    """Parameters of everything else."""
    other_bytes: int
    spectra: Mapping[str, torch.Tensor] = field(repr=False, default_factory=dict)

    @property
    def rank_reduction(self) -> float:
        """Share of the ranks of all planned matrices that goes."""
        full = {name: entry.target.full_rank for name, entry in self.entries.items()}
        return sp.reduction({name: entry.rank for name, entry in self.entries.items()}, full)

    def totals(self) -> dict[str, tuple[int, int]]:
        """Return (before, after) of parameters and bytes of the whole model."""
        dense = [(e.target.rows * e.target.columns, e.target.itemsize) for e in self.entries.values()]
        return {
            "parameters": (
                self.other_numel + sum(numel for numel, _ in dense),
                self.other_numel + sum(entry.numel for entry in self.entries.values()),
            ),
            "bytes": (
                self.other_bytes + sum(numel * itemsize for numel, itemsize in dense),
                self.other_bytes + sum(entry.nbytes for entry in self.entries.values()),
            ),
        }


def find_targets(model: nn.Module, options: WeLoreOptions) -> tuple[dict[str, nn.Linear], dict[str, str]]:
    """Return the layers that may be cut, by name, and the selected ones that may not, with the reason.

    Args:
        model: any device, meta included.
        options: which modules, and from which size on.
    Raises:
        ConfigError: if no layer can be cut; lists why.
    """
    present = list(low_rank_modules(model))
    inner = tuple(f"{name}." for name in present)
    shared = shared_parameters(model)
    targets: dict[str, nn.Linear] = {}
    skipped = dict.fromkeys(present, "unchanged: is of low rank already")
    for name, module in select_modules(model, options.target_modules, options.exclude_modules).items():
        if name in skipped or (inner and name.startswith(inner)):
            continue
        if not is_linear(module):
            skipped[name] = f"left alone: {type(module).__name__} is no plain linear layer"
        elif id(module.weight) in shared:
            skipped[name] = "left alone: its weight is shared with another module"
        elif min(module.weight.shape) < options.min_dim:  # type: ignore[arg-type]
            skipped[name] = f"left alone: its smaller side is below min_dim={options.min_dim}"
        else:
            targets[name] = module  # type: ignore[assignment]
    if not targets:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in list(skipped.items())[:5])
        raise ConfigError(
            f"WeLore: target_modules={options.target_modules!r} leaves no layer to cut ({reasons}); expected a plain "
            f"linear layer with both sides >= min_dim={options.min_dim}. Select others, or lower min_dim."
        )
    return targets, skipped


def shapes_of(targets: Mapping[str, nn.Module]) -> dict[str, Target]:
    """Return shape and item size of each layer's matrix."""
    matrices = {name: matrix_of(module) for name, module in targets.items()}
    return {name: Target(one.shape[0], one.shape[1], one.element_size()) for name, one in matrices.items()}


def make_plan(
    shapes: Mapping[str, Target],
    spectra: sp.Spectra,
    options: WeLoreOptions,
    *,
    skipped: Mapping[str, str],
    total_numel: int,
    total_bytes: int,
) -> Plan:
    """Choose rank and storage of every matrix.

    Args:
        shapes: of the matrices that may be cut.
        spectra: their singular values.
        options: what is wished.
        skipped: for the report.
        total_numel: parameters of the whole dense model.
        total_bytes: its bytes.
    Raises:
        ConfigError: if what is wished cannot be reached; says what can.
    """
    dense_numel = sum(t.rows * t.columns for t in shapes.values())
    dense_bytes = sum(t.rows * t.columns * t.itemsize for t in shapes.values())
    other = (total_numel - dense_numel, total_bytes - dense_bytes)
    allocation = _above_floor(_allocate(shapes, spectra, options, other, total_numel), spectra, options)
    entries = {}
    for name, target in shapes.items():
        rank = allocation.ranks[name]
        shares = sp.energy_shares(spectra[name])
        is_cut = rank < target.full_rank
        is_lrc = sp.is_low_rank_component(rank, target.full_rank)
        storage = _storage(target, rank, options, is_lrc) if is_cut else "dense"
        error = math.sqrt(float(shares[rank:].sum()))
        entries[name] = Entry(name, target, rank, storage, is_lrc, is_cut, error)
    return Plan(entries, dict(skipped), allocation.threshold, *other, spectra)


def _allocate(
    shapes: Mapping[str, Target],
    spectra: sp.Spectra,
    options: WeLoreOptions,
    other: tuple[int, int],
    total_numel: int,
) -> sp.Allocation:
    if options.rank_pattern is not None:
        return _given(shapes, options.rank_pattern)
    if options.threshold is not None:
        found = sp.threshold_ranks(spectra, options.threshold)
        return _only_lrc(found, shapes) if options.effective_scope == "lrc" else found
    if options.rank_reduction is not None or (options.param_ratio is None and options.max_bytes is None):
        share = options.rank_reduction if options.rank_reduction is not None else 0.5
        if options.effective_scope == "lrc":
            return sp.lrc_ranks(spectra, share)
        rules = {"threshold": sp.quantile_ranks, "energy": sp.energy_ranks, "uniform": sp.uniform_ranks}
        return rules[options.allocation or "threshold"](spectra, share)
    in_bytes = options.max_bytes is not None
    budget = options.max_bytes - other[1] if options.max_bytes is not None else 0.0
    if options.param_ratio is not None:
        budget = options.param_ratio * total_numel - other[0]

    def cost(name: str, ranks: np.ndarray) -> np.ndarray:
        return storage_costs(shapes[name], ranks, options, in_bytes=in_bytes)

    if options.allocation == "threshold":
        return sp.threshold_budget_ranks(spectra, cost, budget)
    if options.allocation == "uniform":
        return _uniform_within(spectra, cost, budget)
    return sp.budget_ranks(spectra, cost, budget)


def _above_floor(allocation: sp.Allocation, spectra: sp.Spectra, options: WeLoreOptions) -> sp.Allocation:
    """Raise ranks to those that keep `energy_floor` of each matrix; ranks that the user gave stay."""
    if options.energy_floor is None or options.rank_pattern is not None:
        return allocation
    floors = {name: sp.explained_rank(values, options.energy_floor) for name, values in spectra.items()}
    return sp.Allocation({n: max(rank, floors[n]) for n, rank in allocation.ranks.items()}, allocation.threshold)


def storage_costs(target: Target, ranks: np.ndarray, options: WeLoreOptions, *, in_bytes: bool = True) -> np.ndarray:
    """Return the bytes (or numbers) that each rank takes in its storage; the full rank stays dense."""
    rows, columns = target.rows, target.columns

    def of(rank: int) -> int:
        if rank == target.full_rank:
            return rows * columns * (target.itemsize if in_bytes else 1)
        storage = _storage(target, rank, options, sp.is_low_rank_component(rank, target.full_rank))
        if in_bytes:
            return storage_bytes(rows, columns, rank, storage, target.itemsize)
        return storage_numel(rows, columns, rank, storage)

    return np.array([of(int(rank)) for rank in ranks], dtype=np.float64)


def _storage(target: Target, rank: int, options: WeLoreOptions, is_lrc: bool) -> Storage:
    if options.storage != "auto":
        return options.storage
    if options.train is not None:  # factors are what one trains
        small = storage_numel(target.rows, target.columns, rank, "factored") < target.rows * target.columns
        return "factored" if is_lrc or small else "dense"
    return smallest_storage(target.rows, target.columns, rank, target.itemsize)


def _uniform_within(spectra: sp.Spectra, cost: sp.Cost, budget: float) -> sp.Allocation:
    """Drop the smallest common share of ranks that fits a budget."""
    shares: Iterator[float] = (step / 1000 for step in range(1, 1000))
    for share in shares:
        allocation = sp.uniform_ranks(spectra, share)
        if sum(float(cost(name, np.array([rank]))[0]) for name, rank in allocation.ranks.items()) <= budget:
            return allocation
    raise ConfigError(
        f"WeLore: budget={budget:,.0f} for the selected matrices is below what a common rank can reach; expected more. "
        "Raise it, or choose allocation='energy'."
    )


def _given(shapes: Mapping[str, Target], pattern: Mapping[str, int]) -> sp.Allocation:
    unknown = sorted(set(pattern) - set(shapes))
    wrong = [name for name, rank in pattern.items() if name in shapes and not 1 <= rank <= shapes[name].full_rank]
    if unknown or wrong:
        name = (unknown or wrong)[0]
        expected = f"1 <= rank <= {shapes[name].full_rank}" if wrong and not unknown else "a layer that can be cut"
        raise ConfigError(
            f"WeLore: rank_pattern['{name}']={pattern[name]} does not fit this model; expected {expected}. Correct it."
        )
    return sp.Allocation({name: pattern.get(name, target.full_rank) for name, target in shapes.items()}, None)


def _only_lrc(allocation: sp.Allocation, shapes: Mapping[str, Target]) -> sp.Allocation:
    ranks = {
        name: rank if sp.is_low_rank_component(rank, shapes[name].full_rank) else shapes[name].full_rank
        for name, rank in allocation.ranks.items()
    }
    return sp.Allocation(ranks, allocation.threshold)
