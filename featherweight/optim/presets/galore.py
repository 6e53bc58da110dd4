"""GaLore: Adam in a low-rank subspace of the gradient.

A preset of `LowRankOptimizer`. Source: Zhao et al., arXiv 2403.03507.
"""

from collections.abc import Iterable
from typing import Any, Unpack

from featherweight.optim.low_rank import LowRankOptimizer
from featherweight.optim.options import GaLoreOptions
from featherweight.optim.presets.arguments import GALORE, complete, preset


@preset(GALORE)
class GaLoreAdamW(LowRankOptimizer):
    """AdamW whose moments live in a low-rank subspace of the gradient.

    For a weight W (M, N) with gradient G, on the smaller side (here the left, P of shape (M, R))::

        every `update_proj_gap` steps:  P <- basis of the R strongest directions of G;  moments follow into it
        C = P^T G;   D = Adam(C);   W <- (1 - lr * weight_decay) W - lr * scale * P D

    Weights stay dense and fully trainable. Other parameters run AdamW at lr. Drop-in for galore-torch: its group keys
    `rank`, `update_proj_gap`, `scale`, `proj_type` mean the same.

    Args:
        params: groups from `fw.optim.param_groups`, galore-torch's groups, or tensors (then every matrix with
            min(M, N) > rank is projected, embeddings too).
    Raises:
        ConfigError: for an option out of range or a complex parameter; at a step for a sparse gradient.
        ShapeError: if `split` of a group does not divide the rows.
    Cost: 4*R*M*N FLOPs a step and matrix; state 2*R*max(M, N) moments and R*min(M, N) basis elements instead of 2*M*N.
        A refresh converts a 16-bit gradient to float32 as a whole; else no temporary has the size of the weight.
    Source: arXiv 2403.03507; rotation of moments arXiv 2410.16103. Differs from the official code: eps and decay as in
        torch.optim, moments follow the basis, warm staggered refresh, plain-tensor state; its own behaviour is
        `moment_policy="keep", basis_method="svd", stagger=False, eps_mode="official", decay_order="after", eps=1e-6`.
    Example:
        >>> import torch
        >>> model = torch.nn.Linear(64, 32)
        >>> optimizer = GaLoreAdamW([{"params": [model.weight], "rank": 4}, {"params": [model.bias]}], lr=1e-2)
        >>> optimizer.state_bytes()  # 2 moments of 4 x 64, a basis of 32 x 4, 2 moments of 32 and 6 counters
        2864
    """

    def __init__(self, params: Iterable[Any], *positional: Any, **options: Unpack[GaLoreOptions]) -> None:
        super().__init__(params, complete(self, positional, options))
