"""LDAdam: a subspace that moves a little at every step.

A preset of `LowRankOptimizer`. Source: Robert et al., arXiv 2410.16103.
"""

from collections.abc import Iterable
from typing import Any

from featherweight.optim.low_rank import LowRankOptimizer


class LDAdamW(LowRankOptimizer):
    """AdamW in a subspace that takes one warm iteration at every step, with moments that follow it.

    For a weight W (M, N), M <= N, with gradient G and basis P (M, R) (mirrored for M > N)::

        B = rho * P M + (1 - rho) * G          M: bias-corrected first moment, rho = basis_smoothing
        P' = qr(B B^T P), in the basis of its span that is nearest to P
        moments <- rotated by P'^T P;   P <- P'
        C = P^T G;   D = Adam(C);   W <- (1 - lr * weight_decay) W - lr * scale * P D

    With `error_feedback` what was lost, ``E = G - P C + b1 / (1 - b1) * (momentum lost by the rotation)``, is added to
    the next gradient; it takes a tensor of the weight's size, and then whole gradients are needed under accumulation.

    Args:
        params: groups from `fw.optim.param_groups`, or tensors.
        lr: learning rate.
        betas: decay of first and second moment.
        eps: added to the root of the second moment.
        weight_decay: decoupled, with factor lr.
        rank: R, or a float for a fraction of min(M, N).
        update_proj_gap: optimizer steps between two iterations.
        scale: factor of the update of projected matrices.
        proj_type: side of the basis, as in `GaLoreAdamW`.
        state_bits: 32, 16, 8 or 4 bits for each moment element.
        basis_bits: 32, 16, 8 or 4. None: 16 for 16-bit weights, else 32.
        basis_smoothing: rho, share of the first moment in the matrix that is iterated.
        error_feedback: keep what the projection loses (the paper does).
        stochastic_rounding: write bfloat16 weights and moments with stochastic rounding.
        seed: of random bases and rounding.
    Raises:
        ConfigError: for an option out of range or a complex parameter; at a step for a sparse gradient.
    Cost: 8*R*M*N FLOPs a step and matrix.
    Source: arXiv 2410.16103, Algorithm 1. Differs from the paper: error feedback is off by default, because its tensor
        is as large as a full first moment; the basis is aligned with the one before, which its second moments need.
    Example:
        >>> import torch
        >>> model = torch.nn.Linear(64, 32, bias=False)
        >>> LDAdamW([{"params": [model.weight], "rank": 4}], lr=1e-3).state_bytes()
        2600
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.908, 0.99),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        rank: int | float = 128,
        update_proj_gap: int = 1,
        scale: float = 1.0,
        proj_type: str = "std",
        state_bits: int = 32,
        basis_bits: int | None = None,
        basis_smoothing: float = 0.908,
        error_feedback: bool = False,
        stochastic_rounding: bool = True,
        seed: int = 0,
    ) -> None:
        options = {key: value for key, value in locals().items() if key not in ("self", "params", "__class__")}
        super().__init__(params, {**options, "stagger": False})
