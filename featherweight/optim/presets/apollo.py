"""APOLLO: the raw gradient, scaled as Adam would scale a random projection of it.

Presets of `LowRankOptimizer`. Source: Zhu et al., arXiv 2412.05270.
"""

from collections.abc import Iterable
from typing import Any, Unpack

from featherweight.optim.low_rank import LowRankOptimizer
from featherweight.optim.options import ApolloOptions
from featherweight.optim.presets.arguments import APOLLO, APOLLO_MINI, complete, preset


@preset(APOLLO)
class Apollo(LowRankOptimizer):
    """AdamW's learning rates by channel, read off a random projection; a full-rank update with low-rank state.

    For a weight W (M, N), M <= N, with gradient G, and a Gaussian P (M, R) with elements of variance 1 / R (mirrored
    for M > N)::

        every `update_proj_gap` steps:  a new P, from the seed
        C = P^T G;   D = Adam(C);   s_j = ||D_j|| / ||C_j||  for each column j
        S = s * G, shortened to 1.01 times the last ||S||
        W <- (1 - lr * weight_decay) W - lr * sqrt(scale) * S

    Other parameters run AdamW at lr. P is never stored: it is drawn anew from the seed at each step.

    Args:
        params: groups from `fw.optim.param_groups`, apollo-torch's groups (without its keys `proj` and `scale_type`),
            or tensors.
    Raises:
        ConfigError: for an option out of range or a complex parameter; at a step for a sparse gradient.
    Cost: 2*R*M*N FLOPs a step and matrix, R*min(M, N) random numbers, one float32 temporary of the gradient's size;
        state of 2*R*max(M, N) moment elements and one number.
    Source: arXiv 2412.05270, Algorithm 1. Differs from apollo-torch: eps as in torch.optim, the limit acts on the
        bias-corrected update, decay before the update.
    Example:
        >>> import torch
        >>> model = torch.nn.Linear(64, 32, bias=False)
        >>> optimizer = Apollo([{"params": [model.weight], "rank": 4}], lr=1e-2)
        >>> optimizer.state_bytes()  # 2 moments of 4 x 64, 5 counters and a norm
        2092
    """

    def __init__(self, params: Iterable[Any], *positional: Any, **options: Unpack[ApolloOptions]) -> None:
        super().__init__(params, complete(self, positional, options))


@preset(APOLLO_MINI)
class ApolloMini(LowRankOptimizer):
    """APOLLO at rank 1 with one learning rate for a whole matrix: state as small as that of plain SGD.

    As `Apollo`, with one factor for the matrix; ``scale=128`` makes up for what a projection onto one direction loses::

        C = P^T G;   D = Adam(C);   s = ||D|| / ||C||
        W <- (1 - lr * weight_decay) W - lr * sqrt(scale) * s * G, with the growth of ||s G|| limited to 1.01

    Args:
        params: as `Apollo`.
    Raises:
        ConfigError: for an option out of range or a complex parameter; at a step for a sparse gradient.
    Cost: as `Apollo` at rank 1.
    Source: arXiv 2412.05270, section 4.2.
    Example:
        >>> import torch
        >>> model = torch.nn.Linear(64, 32, bias=False)
        >>> ApolloMini([{"params": [model.weight], "low_rank": True}], lr=1e-2).state_bytes()
        556
    """

    def __init__(self, params: Iterable[Any], *positional: Any, **options: Unpack[ApolloOptions]) -> None:
        super().__init__(params, complete(self, positional, options))
