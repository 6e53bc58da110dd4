"""Q-GaLore: GaLore with 8-bit moments, a 4-bit basis, and refreshes that become rare where nothing moves.

A preset of `LowRankOptimizer`. Source: Zhang et al., arXiv 2407.08296.
"""

from collections.abc import Iterable
from typing import Any, Unpack

from featherweight.optim.low_rank import LowRankOptimizer
from featherweight.optim.options import QGaLoreOptions
from featherweight.optim.presets.arguments import Q_GALORE, complete, preset


@preset(Q_GALORE)
class QGaLoreAdamW(LowRankOptimizer):
    """GaLore whose state fits into few bits, made for int8 weights (`fw.apply(model, fw.Int8())`).

    For a weight W (M, N) with gradient G, on the smaller side (here the left, P of shape (M, R))::

        now and then:  P <- int4(basis of the R strongest directions of G);  moments follow into it
        C = P^T G;   D = Adam(C), moments in 8 bits;   W <- int8((1 - lr * weight_decay) W - lr * scale * P D)

    As `GaLoreAdamW`, with blockwise 8-bit moments, a basis of packed 4-bit codes, and a refresh interval of each
    matrix that doubles while its subspace stands still. On int8 weights the update is rounded stochastically to the
    codes, tile by tile; on bfloat16 and float32 weights it is written as by every other optimizer here.

    Args:
        params: groups from `fw.optim.param_groups`, galore-torch's groups, or tensors.
    Raises:
        ConfigError: for an option out of range or a complex parameter; at a step for a sparse gradient.
    Cost: as `GaLoreAdamW`; state 2*R*max(M, N) + R*min(M, N)/2 bytes and 1.6 % for scales.
    Source: arXiv 2407.08296. Differs from the official code: two 4-bit codes share a byte; similarity of subspaces
        does not depend on signs; moments follow the basis; every parameter is trained in layer-wise mode.
    Example:
        >>> import torch
        >>> model = torch.nn.Linear(512, 512, bias=False)
        >>> optimizer = QGaLoreAdamW([{"params": [model.weight], "rank": 64}], lr=1e-2)
        >>> optimizer.state_bytes(), 2 * 4 * 512 * 512  # AdamW's
        (83660, 2097152)
    """

    def __init__(self, params: Iterable[Any], *positional: Any, **options: Unpack[QGaLoreOptions]) -> None:
        super().__init__(params, complete(self, positional, options))
