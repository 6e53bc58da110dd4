"""Fira: GaLore plus what it leaves out, scaled like what it keeps.

A preset of `LowRankOptimizer`. Source: Chen et al., arXiv 2410.01623.
"""

from collections.abc import Iterable
from typing import Any

from featherweight.optim.low_rank import LowRankOptimizer


class Fira(LowRankOptimizer):
    """GaLore whose update also has the part of the gradient outside the subspace.

    For a weight W (M, N), M <= N, with gradient G and basis P (M, R) of GaLore::

        C = P^T G;   D = Adam(C);   phi_j = ||D_j|| / ||C_j||  for each column j
        S = phi * (G - P C), shortened to 1.01 times the last ||S||
        W <- (1 - lr * weight_decay) W - lr * scale * (P D + S)

    Args:
        params: groups from `fw.optim.param_groups`, or tensors.
        lr: learning rate; projected matrices move by ``lr * scale``.
        betas: decay of first and second moment.
        eps: added to the root of the second moment.
        weight_decay: decoupled, with factor lr.
        rank: R, or a float for a fraction of min(M, N).
        update_proj_gap: optimizer steps between refreshes of a basis.
        scale: factor of the update of projected matrices.
        proj_type: side of the basis, as in `GaLoreAdamW`.
        state_bits: 32, 16, 8 or 4 bits for each moment element.
        basis_bits: 32, 16, 8 or 4. None: 16 for 16-bit weights, else 32.
        basis_method: as in `GaLoreAdamW`.
        moment_policy: "rotate", "keep" (the paper) or "reset".
        stagger: spread the refreshes over the gap.
        early_refresh: refresh also at (about) the steps 10, 25, 50 and 100.
        stochastic_rounding: write bfloat16 weights and moments with stochastic rounding.
        seed: of random bases and rounding.
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
        scale: float = 0.25,
        proj_type: str = "std",
        state_bits: int = 32,
        basis_bits: int | None = None,
        basis_method: str = "auto",
        moment_policy: str = "rotate",
        stagger: bool = True,
        early_refresh: bool = False,
        residual: str = "fira",
        stochastic_rounding: bool = True,
        seed: int = 0,
    ) -> None:
        options = {key: value for key, value in locals().items() if key not in ("self", "params", "__class__")}
        super().__init__(params, options)
