"""GUM: low-rank Muon that is unbiased over time.

A preset of `LowRankOptimizer`. Source: arXiv 2510.17802.
"""

from collections.abc import Iterable
from typing import Any

from featherweight.optim.low_rank import LowRankOptimizer


class GUM(LowRankOptimizer):
    """Muon on the core of the gradient, in some periods on the rest of it: one moment instead of two.

    For a weight W (M, N), M <= N, with gradient G and basis P (M, R) of GaLore; between two refreshes a matrix follows
    its subspace, or, with probability q = `full_rank_probability`, the complement of it::

        subspace:    m <- b m + P^T G / (1 - q);         W <- (1 - lr * weight_decay) W - lr * scale * P muon(m)
        complement:  m <- b m + (G - P P^T G) / q;       W <- (1 - lr * weight_decay) W - lr * scale * muon(m)

    where muon(m) = 0.2 sqrt(longer side of m) NS(m), and NS sets the singular values to about 1 by five Newton-Schulz
    steps. The two weights make the expected gradient the true one. All other parameters run AdamW at lr.

    Args:
        params: groups from `fw.optim.param_groups`, or tensors.
        lr: learning rate.
        momentum: b.
        betas: of AdamW for the parameters that are not projected.
        eps: of AdamW.
        weight_decay: decoupled, with factor lr.
        rank: R, or a float for a fraction of min(M, N).
        update_proj_gap: optimizer steps between refreshes of a basis.
        scale: factor of the update of projected matrices.
        full_rank_probability: q. 0 never leaves the subspace (plain low-rank Muon, biased). Stacked matrices never do.
        proj_type: side of the basis, as in `GaLoreAdamW`.
        state_bits: 32, 16, 8 or 4 bits for each moment element.
        basis_bits: 32, 16, 8 or 4. None: 16 for 16-bit weights, else 32.
        basis_method: as in `GaLoreAdamW`.
        moment_policy: what a refresh does to the moment: "rotate", "keep" or "reset".
        stagger: spread the refreshes over the gap.
        stochastic_rounding: write bfloat16 weights and moments with stochastic rounding.
        seed: of random bases, periods and rounding.
    Raises:
        ConfigError: for an option out of range or a complex parameter; at a step for a sparse gradient.
    Cost: FLOPs of `GaLoreAdamW` and 15 products of the core with its Gram matrix; state of R*max(M, N) moment
        elements and the basis, for a matrix in its full-rank period M*N float32 elements more.
    Source: arXiv 2510.17802; rule: Jordan et al., Muon, 2024.
    Example:
        >>> import torch
        >>> model = torch.nn.Linear(64, 32, bias=False)
        >>> GUM([{"params": [model.weight], "rank": 4}], lr=1e-3).state_bytes()
        1584
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        rank: int | float = 128,
        update_proj_gap: int = 200,
        scale: float = 1.0,
        full_rank_probability: float = 0.1,
        proj_type: str = "std",
        state_bits: int = 32,
        basis_bits: int | None = None,
        basis_method: str = "auto",
        moment_policy: str = "rotate",
        stagger: bool = True,
        stochastic_rounding: bool = True,
        seed: int = 0,
    ) -> None:
        options = {key: value for key, value in locals().items() if key not in ("self", "params", "__class__")}
        super().__init__(params, {**options, "rule": "muon"})
