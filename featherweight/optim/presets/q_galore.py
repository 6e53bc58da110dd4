"""Q-GaLore: GaLore with 8-bit moments, a 4-bit basis, and refreshes that become rare where nothing moves.

A preset of `LowRankOptimizer`. Source: Zhang et al., arXiv 2407.08296.
"""

from collections.abc import Iterable
from typing import Any

from featherweight.optim.low_rank import LowRankOptimizer
from featherweight.optim.policies.lazy import LazyRefresh


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
        lr: learning rate; projected matrices move by ``lr * scale``.
        betas: decay of first and second moment.
        eps: added to the root of the second moment.
        weight_decay: decoupled, with factor lr for every parameter.
        rank: R, or a float for a fraction of min(M, N).
        update_proj_gap: shortest interval between refreshes, in optimizer steps.
        scale: factor of the update of projected matrices.
        proj_type: side of the basis, as in `GaLoreAdamW`.
        state_bits: 8, or 32, 16, 4 for the moments.
        basis_bits: 4, or 32, 16, 8.
        basis_renorm: give the columns of the rounded basis unit length.
        basis_method: as in `GaLoreAdamW`, but for "random".
        moment_policy: "rotate", "keep" or "reset".
        stagger: spread the refreshes over the gap.
        early_refresh: refresh also at (about) the steps 10, 25, 50 and 100.
        lazy: options of the lazy refresh; None or False refreshes every `update_proj_gap` steps.
        stochastic_rounding: write int8 and bfloat16 weights with stochastic rounding instead of to nearest.
        seed: of random bases and rounding; a run repeats bit by bit.
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
        state_bits: int = 8,
        basis_bits: int | None = 4,
        basis_renorm: bool = False,
        basis_method: str = "auto",
        moment_policy: str = "rotate",
        stagger: bool = True,
        early_refresh: bool = False,
        lazy: LazyRefresh | bool | None = True,
        stochastic_rounding: bool = True,
        seed: int = 0,
    ) -> None:
        options = {key: value for key, value in locals().items() if key not in ("self", "params", "__class__")}
        super().__init__(params, options)
