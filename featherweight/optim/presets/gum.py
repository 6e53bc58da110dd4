"""GUM: low-rank Muon that is unbiased over time.

A preset of `LowRankOptimizer`. Source: arXiv 2510.17802.
"""

from collections.abc import Iterable
from typing import Any, Unpack

from featherweight.optim.low_rank import LowRankOptimizer
from featherweight.optim.options import GUMOptions
from featherweight.optim.presets.arguments import LOW_RANK_MUON, complete, preset


@preset(LOW_RANK_MUON)
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

    def __init__(self, params: Iterable[Any], *positional: Any, **options: Unpack[GUMOptions]) -> None:
        super().__init__(params, complete(self, positional, options))
