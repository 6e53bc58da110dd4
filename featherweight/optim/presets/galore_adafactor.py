"""GaLore with Adafactor's factored second moment.

A preset of `LowRankOptimizer`. Source: Zhao et al., arXiv 2403.03507, section 5.3.
"""

from collections.abc import Iterable
from typing import Any

from featherweight.optim.low_rank import LowRankOptimizer


class GaLoreAdafactor(LowRankOptimizer):
    """Adafactor whose moments live in a low-rank subspace of the gradient.

    As `GaLoreAdamW`, with this rule on the core C (and on the gradients of all other parameters)::

        b2 = 1 - t^-0.8;   row <- b2 row + (1 - b2) mean(C^2 over columns);   col likewise over rows
        D = C / sqrt(row col / mean(row));   D <- D / max(1, rms(D));   m <- b1 m + (1 - b1) D
        W <- (1 - lr * weight_decay) W - lr * scale * P m

    Args:
        params: groups from `fw.optim.param_groups`, or tensors.
        lr: learning rate; projected matrices move by ``lr * scale``.
        beta1: decay of the first moment; None keeps none.
        weight_decay: decoupled, with factor lr.
        rank: R, or a float for a fraction of min(M, N).
        update_proj_gap: optimizer steps between refreshes of a basis.
        scale: factor of the update of projected matrices.
        proj_type: side of the basis, as in `GaLoreAdamW`.
        state_bits: 32, 16, 8 or 4 bits for each element of the first moment.
        basis_bits: 32, 16, 8 or 4. None: 16 for 16-bit weights, else 32.
        basis_method: as in `GaLoreAdamW`.
        moment_policy: "rotate", "keep" or "reset".
        stagger: spread the refreshes over the gap.
        stochastic_rounding: write bfloat16 weights and moments with stochastic rounding.
        seed: of random bases and rounding.
    Raises:
        ConfigError: for an option out of range or a complex parameter; at a step for a sparse gradient.
    Cost: FLOPs as `GaLoreAdamW`; state of R*max(M, N) elements with a first moment, of R + max(M, N) without, and the
        basis. Full-rank parameters need float32 temporaries of their size.
    Source: arXiv 2403.03507; rule: arXiv 1804.04235.
    Example:
        >>> import torch
        >>> model = torch.nn.Linear(64, 32, bias=False)
        >>> groups = [{"params": [model.weight], "rank": 4}]
        >>> GaLoreAdafactor(groups, beta1=None).state_bytes()  # a row of 4, a column of 64, a basis, 5 counters
        824
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        beta1: float | None = 0.9,
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
        stochastic_rounding: bool = True,
        seed: int = 0,
    ) -> None:
        options = {key: value for key, value in locals().items() if key not in ("self", "params", "beta1", "__class__")}
        super().__init__(params, {**options, "betas": (beta1 or 0.0, 0.0), "eps": 0.0, "rule": "adafactor"})
