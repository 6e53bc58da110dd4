"""Which cut a wanted loss allows: measured by kind of matrix, then shared out, then checked as a whole.

Energies of spectra do not say what a matrix is worth: on SmolLM2 a value projection that loses 1 % of its energy ruins
the model, a query projection that loses 2 % does not. So every kind of matrix (all v_proj, all up_proj, ...) is cut
alone at a few shares of its ranks, and a text says what that costs in nats. Between these points the cost is taken to
follow the lost energy; several kinds together are taken to cost the sum, and the choice under a total is the one that
saves most bytes. How far that sum is from the truth is measured with the whole cut in place, and corrected until the
measured loss is just below the limit.
Shapes: M rows, N columns, Q = min(M, N), R rank.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from featherweight.errors import ConfigError
from featherweight.linalg import spectrum as sp
from featherweight.linalg.factors import factorize
from featherweight.methods.peft_adapter import require_no_adapter
from featherweight.methods.welore import calibrate
from featherweight.methods.welore.method import WeLore, block_roots
from featherweight.methods.welore.plan import Target, find_targets, shapes_of, storage_costs
from featherweight.methods.welore.report import split_name
from featherweight.methods.welore.whiten import whitened_factors
from featherweight.nn.low_rank_linear import matrix_of

SHARES = (0.1, 0.25, 0.5, 0.75)
"""Shares of its ranks that a kind loses in the measurements; one beyond the limit ends them."""

GRID = 100
"""Cuts of a kind that are considered between those that were measured."""

WHOLE_CUTS = 6
"""Measurements of the whole cut."""

Measure = Callable[[nn.Module], float]
"""The loss of a model on a text, in nats a token."""


@dataclass
class _Kind:
    """Matrices of one kind, and what cutting them costs."""

    names: list[str]
    reductions: list[float] = field(default_factory=lambda: [0.0])
    costs: list[float] = field(default_factory=lambda: [0.0])
    """Measured increase of the loss at those shares of ranks."""
    candidates: list[tuple[dict[str, int], float, float]] = field(default_factory=list)
    """Ranks, increase of the loss, bytes."""


@dataclass(frozen=True)
class FoundCut:
    """What a search has found."""

    options: WeLore
    """With the ranks in `rank_pattern`; ``fw.apply`` makes the cut."""
    loss_before: float
    loss_after: float
    """Nats a token on the text of the search."""
    curves: dict[str, tuple[list[float], list[float]]]
    """By kind of matrix: shares of ranks that went, and what they cost in nats."""


def find_cut(model: nn.Module, options: WeLore, measure: Measure, limit: float, calibration: Any = None) -> FoundCut:
    """Find the cut that saves most bytes at a loss of at most `limit` nats above that of the model.

    Args:
        model: in memory, in eval mode; as before afterwards.
        options: of the cut, without a budget; their method says how a matrix is cut.
        measure: the loss on a text.
        limit: allowed increase, in nats a token: log 1.1 for a perplexity of 1.1 times.
        calibration: batches for method=whitened, see `WeLore.apply`.
    Raises:
        ConfigError: if the options have a budget, or no cut is that harmless.
    Cost: two to four measurements for each kind of matrix and up to six more; factors of all matrices in memory.
    """
    _require_no_budget(options)
    require_no_adapter(model, "WeLore")
    targets, _ = find_targets(model, options)
    shapes = shapes_of(targets)
    cutter = Cutter(model, targets, options, calibration)
    before = measure(model)
    kinds = _measured_kinds(cutter, measure, before, limit)
    for kind in kinds.values():
        _add_candidates(kind, cutter.spectra, shapes, options)
    low, best, allowed = 0.0, None, limit
    for _ in range(WHOLE_CUTS):
        ranks = _choose(kinds, allowed)
        if not any(rank < shapes[name].full_rank for name, rank in ranks.items()):
            break
        cost = cutter.loss_of(ranks, measure) - before
        if cost <= limit:
            best, low = (ranks, before + cost), allowed
            if cost > 0.9 * limit:
                break
            allowed = min(4 * allowed, 2 * limit) if cost <= 0 else min(4 * allowed, allowed * 0.97 * limit / cost)
        else:
            allowed = (low + allowed) / 2 if low else allowed * 0.9 * limit / cost
    if best is None:
        raise ConfigError(
            f"WeLore: limit={limit:.4g} nats is less than the smallest useful cut of this model costs "
            f"(method={options.method}); expected more. Allow more, give --method whitened a text, or use int8 weights."
        )
    pattern = {name: rank for name, rank in best[0].items() if rank < shapes[name].full_rank}
    chosen = options.model_copy(update={"rank_pattern": pattern})
    return FoundCut(chosen, before, best[1], {name: (kind.reductions, kind.costs) for name, kind in kinds.items()})


def _require_no_budget(options: WeLore) -> None:
    for name in ("rank_reduction", "param_ratio", "max_bytes", "threshold", "rank_pattern"):
        if getattr(options, name) is not None:
            raise ConfigError(
                f"WeLore: {name}={getattr(options, name)} is a budget beside a wanted loss; expected one of the two. "
                "Remove it."
            )
    if options.method == "refit":
        raise ConfigError(
            "WeLore: method=refit depends on the whole cut, which a search for it does not have yet; expected plain or "
            "whitened. Choose one of those."
        )


class Cutter:
    """Puts truncated matrices into a model and takes them out again."""

    def __init__(self, model: nn.Module, targets: Mapping[str, nn.Linear], options: WeLore, calibration: Any) -> None:
        self._model, self._targets = model, dict(targets)
        self._factors: dict[str, tuple[Tensor, Tensor]] = {}
        self.spectra: dict[str, Tensor] = {}
        roots = {} if options.method == "plain" else _roots_of(model, self._targets, calibration)
        for name, linear in self._targets.items():
            matrix = matrix_of(linear).detach()
            wide = matrix if matrix.dtype == torch.float64 else matrix.float()
            sp.require_finite(wide, name)
            root = roots.get(name)
            full = min(wide.shape)
            left, right = factorize(wide, full) if root is None else whitened_factors(wide, root, full)
            self._factors[name] = (left, right)
            # Columns of the left factor are orthogonal and hold the roots of the singular values.
            self.spectra[name] = left.double().square().sum(0).cpu()

    @torch.no_grad()
    def loss_of(self, ranks: Mapping[str, int], measure: Measure) -> float:
        """Return the loss with matrices at some ranks; what is not named stays whole."""
        kept: dict[str, Tensor] = {}
        try:
            for name, rank in ranks.items():
                weight = self._targets[name].weight
                left, right = self._factors[name]
                if rank < left.shape[1]:
                    kept[name] = weight.detach().clone()
                    product = left[:, :rank] @ right[:rank]
                    is_transposed = type(self._targets[name]).__name__ == "Conv1D"
                    weight.copy_(product.mT if is_transposed else product)
            return measure(self._model)
        finally:
            for name, weight in kept.items():
                self._targets[name].weight.copy_(weight)


def _roots_of(model: nn.Module, targets: dict[str, nn.Linear], calibration: Any) -> dict[str, Any]:
    if calibration is None:
        raise ConfigError(
            "WeLore: method=whitened needs data and calibration=None; expected batches of token ids. Give them, or "
            "choose method='plain'."
        )
    blocks = calibrate.find_blocks(model, targets)
    roots: dict[str, Any] = {}
    with calibrate.in_eval_mode(model):
        stream = calibrate.start(model, blocks, calibration)
        for index, block in enumerate(blocks.modules):
            found = block_roots(block, index, stream, blocks, targets, centre=True)
            roots |= {name: root for name, (_, root) in found.items() if root is not None}
    return roots


def _measured_kinds(cutter: Cutter, measure: Measure, before: float, limit: float) -> dict[str, _Kind]:
    """Cut every kind of matrix alone, a little further each time, until that costs more than all may cost."""
    by_kind: dict[str, list[str]] = defaultdict(list)
    for name in cutter.spectra:
        by_kind[split_name(name)[1]].append(name)
    kinds = {}
    for label, names in by_kind.items():
        kind = kinds[label] = _Kind(names)
        spectra = {name: cutter.spectra[name] for name in names}
        for share in SHARES:
            if min(len(values) for values in spectra.values()) * (1 - share) < 1:
                break
            cost = cutter.loss_of(sp.energy_ranks(spectra, share).ranks, measure) - before
            kind.reductions.append(share)
            kind.costs.append(max(cost, kind.costs[-1]))  # a gain is chance
            if cost > limit:
                break
    return kinds


def _add_candidates(kind: _Kind, spectra: sp.Spectra, shapes: Mapping[str, Target], options: WeLore) -> None:
    """List cuts of a kind, with their cost between the measured points as the lost energy says, and their bytes."""
    mine = {name: spectra[name] for name in kind.names}
    tails = {name: 1 - np.cumsum(sp.energy_shares(values).numpy()) for name, values in mine.items()}

    def energy(ranks: Mapping[str, int]) -> float:
        return float(sum(max(0.0, tails[name][rank - 1]) for name, rank in ranks.items()))

    full = {name: shapes[name].full_rank for name in kind.names}
    measured = [0.0] + [energy(sp.energy_ranks(mine, share).ranks) for share in kind.reductions[1:]]
    whole = sum(float(storage_costs(shapes[name], np.array([rank]), options)[0]) for name, rank in full.items())
    kind.candidates.append((full, 0.0, whole))
    for share in np.linspace(0, kind.reductions[-1], GRID + 1)[1:]:
        if sum(full.values()) * share < 1:
            continue
        ranks = sp.energy_ranks(mine, float(share)).ranks
        size = sum(float(storage_costs(shapes[name], np.array([rank]), options)[0]) for name, rank in ranks.items())
        kind.candidates.append((ranks, float(np.interp(energy(ranks), measured, kind.costs)), size))


def _choose(kinds: Mapping[str, _Kind], allowed: float) -> dict[str, int]:
    """Return the ranks with the fewest bytes whose costs add up to at most `allowed`."""
    low, high = 1e-15, 1e3  # nats for a byte
    best = {label: 0 for label in kinds}
    for _ in range(80):
        price = float(np.sqrt(low * high))
        chosen = {
            label: min(range(len(kind.candidates)), key=lambda i: kind.candidates[i][1] + price * kind.candidates[i][2])
            for label, kind in kinds.items()
        }
        if sum(kinds[label].candidates[i][1] for label, i in chosen.items()) <= allowed:
            low, best = price, chosen
        else:
            high = price
    return {name: rank for label, i in best.items() for name, rank in kinds[label].candidates[i][0].items()}
