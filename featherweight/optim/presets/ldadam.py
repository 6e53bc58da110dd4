"""LDAdam: a subspace that moves a little at every step.

A preset of `LowRankOptimizer`. Source: Robert et al., arXiv 2410.16103.
"""

from collections.abc import Iterable
from typing import Any, Unpack

from featherweight.optim.low_rank import LowRankOptimizer
from featherweight.optim.options import LDAdamOptions
from featherweight.optim.presets.arguments import LDADAM, complete, preset


@preset(LDADAM)
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

    def __init__(self, params: Iterable[Any], *positional: Any, **options: Unpack[LDAdamOptions]) -> None:
        super().__init__(params, complete(self, positional, options))
