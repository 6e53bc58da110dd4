"""AdamW with the storages and the rounding of the low-rank optimizers: their full-rank twin.

A preset of `LowRankOptimizer`. Source: Loshchilov and Hutter, arXiv 1711.05101; 8-bit states: Dettmers et al., arXiv
2110.02861.
"""

from collections.abc import Iterable
from typing import Any

from featherweight.optim.low_rank import LowRankOptimizer
from featherweight.optim.options import LOW_RANK_DEFAULTS


class AdamW(LowRankOptimizer):
    """AdamW as in torch.optim, with 32, 16, 8 or 4-bit moments and stochastic rounding of bfloat16 weights.

    ``W <- (1 - lr * weight_decay) W - lr * m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps)``

    With float32 weights and `state_bits=32` torch's own fused kernel does the step.

    Args:
        params: tensors, named tensors, or parameter groups.
        lr: learning rate.
        betas: decay of first and second moment.
        eps: added to the root of the second moment.
        weight_decay: decoupled.
        state_bits: 32, 16 (bfloat16), or blockwise dynamic 8 or 4; tensors below 4096 elements keep 32.
        eps_mode: "torch", or "official" (as galore-torch and old Hugging Face AdamW: eps acts before bias correction).
        decay_order: "before" the update (torch.optim), or "after".
        stochastic_rounding: write bfloat16 weights and moments with stochastic rounding instead of to nearest.
        seed: of the rounding.
    Raises:
        ConfigError: for an option out of range, a low-rank group, or a complex parameter; at a step for a sparse
            gradient.
    Cost: state of 2 moments for each weight element: 8, 4, 2.03 or 1.06 bytes.
    Source: arXiv 1711.05101, arXiv 2110.02861.
    Example:
        >>> import torch
        >>> AdamW(torch.nn.Linear(128, 64).parameters(), state_bits=8).state_bytes()
        17168
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        *,
        state_bits: int = 32,
        eps_mode: str = "torch",
        decay_order: str = "before",
        stochastic_rounding: bool = True,
        seed: int = 0,
    ) -> None:
        options = {key: value for key, value in locals().items() if key not in ("self", "params", "__class__")}
        super().__init__(params, {**NO_SUBSPACE, **options})


NO_SUBSPACE: dict[str, Any] = {**LOW_RANK_DEFAULTS, "rank": None, "update_proj_gap": 1, "stagger": False}
"""Low-rank options of an optimizer that projects nothing."""
