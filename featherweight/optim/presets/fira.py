"""Fira: GaLore plus what it leaves out, scaled like what it keeps.

A preset of `LowRankOptimizer`. Source: Chen et al., arXiv 2410.01623.
"""

from collections.abc import Iterable
from typing import Any, Unpack

from featherweight.optim.low_rank import LowRankOptimizer
from featherweight.optim.options import FiraOptions
from featherweight.optim.presets.arguments import FIRA, complete, preset


@preset(FIRA)
class Fira(LowRankOptimizer):
    """GaLore whose update also has the part of the gradient outside the subspace.

    For a weight W (M, N), M <= N, with gradient G and basis P (M, R) of GaLore::

        C = P^T G;   D = Adam(C);   phi_j = ||D_j|| / ||C_j||  for each column j
        S = phi * (G - P C), shortened to 1.01 times the last ||S||
        W <- (1 - lr * weight_decay) W - lr * scale * (P D + S)

    Args:
        params: groups from `fw.optim.param_groups`, or tensors.
    Raises:
        ConfigError: for an option out of range or a complex parameter; at a step for a sparse gradient.
    Cost: as `GaLoreAdamW`, and 2*R*M*N FLOPs and a float32 temporary of the gradient's size more.
    Source: arXiv 2410.01623, sections 4.2 and 4.3. Differs from the official code: the residual loses all of ``P C``,
        not `scale` times it; moments follow the basis.
    Example:
        >>> import torch
        >>> model = torch.nn.Linear(64, 32)
        >>> groups = [{"params": [model.weight], "rank": 4}, {"params": [model.bias]}]
        >>> Fira(groups, lr=1e-2).state_bytes()  # GaLore's, and the last norm
        2868
    """

    def __init__(self, params: Iterable[Any], *positional: Any, **options: Unpack[FiraOptions]) -> None:
        super().__init__(params, complete(self, positional, options))
