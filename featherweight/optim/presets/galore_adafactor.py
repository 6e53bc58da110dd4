"""GaLore with Adafactor's factored second moment.

A preset of `LowRankOptimizer`. Source: Zhao et al., arXiv 2403.03507, section 5.3.
"""

from collections.abc import Iterable
from typing import Any, Unpack

from featherweight.optim.low_rank import LowRankOptimizer
from featherweight.optim.options import AdafactorOptions
from featherweight.optim.presets.arguments import GALORE_ADAFACTOR, complete, preset


@preset(GALORE_ADAFACTOR)
class GaLoreAdafactor(LowRankOptimizer):
    """Adafactor whose moments live in a low-rank subspace of the gradient.

    As `GaLoreAdamW`, with this rule on the core C (and on the gradients of all other parameters)::

        b2 = 1 - t^-0.8;   row <- b2 row + (1 - b2) mean(C^2 over columns);   col likewise over rows
        D = C / sqrt(row col / mean(row));   D <- D / max(1, rms(D));   m <- b1 m + (1 - b1) D
        W <- (1 - lr * weight_decay) W - lr * scale * P m

    Args:
        params: groups from `fw.optim.param_groups`, or tensors.
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

    def __init__(self, params: Iterable[Any], *positional: Any, **options: Unpack[AdafactorOptions]) -> None:
        given = complete(self, positional, options)
        beta1 = given.pop("beta1")
        betas = options["betas"] if "betas" in options else (beta1 or 0.0, 0.0)
        super().__init__(params, {**given, "betas": betas, "eps": 0.0})
