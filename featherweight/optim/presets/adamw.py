"""AdamW with the storages and the rounding of the low-rank optimizers: their full-rank twin.

A preset of `LowRankOptimizer`. Source: Loshchilov and Hutter, arXiv 1711.05101; 8-bit states: Dettmers et al., arXiv
2110.02861.
"""

from collections.abc import Iterable
from typing import Any, Unpack

from featherweight.optim.low_rank import LowRankOptimizer
from featherweight.optim.options import AdamWOptions
from featherweight.optim.presets.arguments import ADAMW, complete, preset


@preset(ADAMW)
class AdamW(LowRankOptimizer):
    """AdamW as in torch.optim, with 32, 16, 8 or 4-bit moments and stochastic rounding of bfloat16 weights.

    ``W <- (1 - lr * weight_decay) W - lr * m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps)``

    With float32 weights and `state_bits=32` torch's own fused kernel does the step.

    Args:
        params: tensors, named tensors, or parameter groups.
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

    def __init__(self, params: Iterable[Any], *positional: Any, **options: Unpack[AdamWOptions]) -> None:
        super().__init__(params, complete(self, positional, options))
