"""APOLLO: the raw gradient, scaled as Adam would scale a random projection of it.

Presets of `LowRankOptimizer`. Source: Zhu et al., arXiv 2412.05270.
"""

from collections.abc import Iterable
from typing import Any

from featherweight.optim.low_rank import LowRankOptimizer


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
        lr: learning rate.
        betas: decay of first and second moment.
        eps: added to the root of the second moment.
        weight_decay: decoupled, with factor lr.
        rank: R, or a float for a fraction of min(M, N); the paper's is a quarter of the hidden size.
        update_proj_gap: optimizer steps between two projections.
        scale: the update carries its square root, as in the paper and apollo-torch.
        proj_type: side of the projection, as in `GaLoreAdamW`.
        state_bits: 32, 16, 8 or 4 bits for each moment element.
        basis_method: "gaussian" (the paper), or any of `GaLoreAdamW`'s, for example "svd" ("APOLLO with SVD").
        moment_policy: what a new projection does to the moments: "keep" (the paper) or "reset"; "rotate" suits
            orthonormal bases alone.
        residual: "apollo", one factor for each channel, or "apollo_tensor", one for the matrix.
        stochastic_rounding: write bfloat16 weights and moments with stochastic rounding.
        seed: of projections and rounding.
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

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        rank: int | float = 128,
        update_proj_gap: int = 200,
        scale: float = 1.0,
        proj_type: str = "std",
        state_bits: int = 32,
        basis_method: str = "gaussian",
        moment_policy: str = "keep",
        residual: str = "apollo",
        stochastic_rounding: bool = True,
        seed: int = 0,
    ) -> None:
        options = {key: value for key, value in locals().items() if key not in ("self", "params", "__class__")}
        super().__init__(params, options)


class ApolloMini(LowRankOptimizer):
    """APOLLO at rank 1 with one learning rate for a whole matrix: state as small as that of plain SGD.

    As `Apollo`, with one factor for the matrix; ``scale=128`` makes up for what a projection onto one direction loses::

        C = P^T G;   D = Adam(C);   s = ||D|| / ||C||
        W <- (1 - lr * weight_decay) W - lr * sqrt(scale) * s * G, with the growth of ||s G|| limited to 1.01

    Args:
        params: as `Apollo`.
        lr: learning rate; the paper uses 0.01 and 0.02.
        betas: decay of first and second moment.
        eps: added to the root of the second moment.
        weight_decay: decoupled, with factor lr.
        rank: R.
        update_proj_gap: optimizer steps between two projections.
        scale: the update carries its square root.
        proj_type: side of the projection, as in `GaLoreAdamW`.
        state_bits: of the parameters that are not projected; the moments of rank 1 are too small to gain from it.
        basis_method: as `Apollo`.
        moment_policy: as `Apollo`.
        residual: "apollo_tensor", or "apollo" for a factor by channel.
        stochastic_rounding: write bfloat16 weights and moments with stochastic rounding.
        seed: of projections and rounding.
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

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-2,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        rank: int | float = 1,
        update_proj_gap: int = 200,
        scale: float = 128.0,
        proj_type: str = "std",
        state_bits: int = 32,
        basis_method: str = "gaussian",
        moment_policy: str = "keep",
        residual: str = "apollo_tensor",
        stochastic_rounding: bool = True,
        seed: int = 0,
    ) -> None:
        options = {key: value for key, value in locals().items() if key not in ("self", "params", "__class__")}
        super().__init__(params, options)
