"""GaLore: Adam in a low-rank subspace of the gradient.

A preset of `LowRankOptimizer`. Source: Zhao et al., arXiv 2403.03507.
"""

from collections.abc import Iterable
from typing import Any

from featherweight.optim.low_rank import LowRankOptimizer
from featherweight.optim.policies.lazy import LazyRefresh


class GaLoreAdamW(LowRankOptimizer):
    """AdamW whose moments live in a low-rank subspace of the gradient.

    For a weight W (M, N) with gradient G, on the smaller side (here the left, P of shape (M, R))::

        every `update_proj_gap` steps:  P <- basis of the R strongest directions of G;  moments follow into it
        C = P^T G;   D = Adam(C);   W <- (1 - lr * weight_decay) W - lr * scale * P D

    Weights stay dense and fully trainable. Other parameters run AdamW at lr. Drop-in for galore-torch: its group keys
    `rank`, `update_proj_gap`, `scale`, `proj_type` mean the same.

    Args:
        params: groups from `fw.optim.param_groups`, galore-torch's groups, or tensors (then every matrix with
            min(M, N) > rank is projected, embeddings too).
        lr: learning rate; projected matrices move by ``lr * scale``.
        betas: decay of first and second moment.
        eps: added to the root of the second moment.
        weight_decay: decoupled, with factor lr for every parameter.
        rank: R, or a float for a fraction of min(M, N). A matrix for which R saves nothing keeps full-rank moments.
        update_proj_gap: optimizer steps between refreshes of a basis.
        scale: factor of the update of projected matrices (the paper's alpha).
        proj_type: "std" (basis on the smaller side), "reverse_std", "left", "right", "full" (both sides), "min_memory"
            (the side that needs fewer bytes, kept only if it holds the energy of the next batch nearly as well).
        state_bits: 32, 16 (bfloat16), or blockwise dynamic 8 or 4 for the moments; tensors below 4096 elements keep 32.
        basis_bits: 32, 16 (bfloat16), or blockwise 8 or 4. None: 16 for 16-bit weights, else 32. Beside bfloat16
            weights products with bases of 16 bits or fewer run in bfloat16.
        basis_renorm: give the columns of an 8- or 4-bit basis unit length (2 more bytes a column); without, rounding to
            4 bits changes the length of an update by up to a sixth.
        basis_method: "auto" (randomized SVD at first, then one warm subspace iteration a refresh), "svd" (exact),
            "gram", "randomized", "subspace_iteration", "random" (orthonormal, drawn anew from the seed whenever it is
            needed, so that the state holds no basis).
        moment_policy: what a refresh does to the moments: "rotate" into the new basis, "keep" (official), "reset".
        stagger: spread the refreshes over the gap, so that no step is slow.
        early_refresh: refresh also at (about) the steps 10, 25, 50 and 100: the gradient turns fast at first.
        lazy: True or `LazyRefresh(...)`: refresh a matrix less often while its subspace stands still (Q-GaLore).
        residual: None drops what lies outside the subspace; "fira" adds it, scaled like the core (arXiv 2410.01623),
            at the cost of a temporary of the gradient's size.
        eps_mode: "torch", or "official" (galore-torch: eps acts before bias correction).
        decay_order: "before" the update (torch.optim), or "after" (galore-torch).
        stochastic_rounding: write bfloat16 weights and moments with stochastic rounding instead of to nearest.
        seed: of random bases and rounding; a run repeats bit by bit.
        rule: inner rule, "adamw", "adamw_compiled" (one kernel by torch.compile; the first step waits for the
            compiler), "adafactor", "sgd" (momentum ``betas[0]``) or "muon".
    Raises:
        ConfigError: for an option out of range or a complex parameter; at a step for a sparse gradient.
        ShapeError: if `split` of a group does not divide the rows.
    Cost: 4*R*M*N FLOPs a step and matrix; state 2*R*max(M, N) moments and R*min(M, N) basis elements instead of 2*M*N.
        A refresh converts a 16-bit gradient to float32 as a whole; else no temporary has the size of the weight.
    Source: arXiv 2403.03507; rotation of moments arXiv 2410.16103. Differs from the official code: eps and decay as in
        torch.optim, moments follow the basis, warm staggered refresh, plain-tensor state; its own behaviour is
        `moment_policy="keep", basis_method="svd", stagger=False, eps_mode="official", decay_order="after", eps=1e-6`.
    Example:
        >>> import torch
        >>> model = torch.nn.Linear(64, 32)
        >>> optimizer = GaLoreAdamW([{"params": [model.weight], "rank": 4}, {"params": [model.bias]}], lr=1e-2)
        >>> optimizer.state_bytes()  # 2 moments of 4 x 64, a basis of 32 x 4, 2 moments of 32 and 6 counters
        2864
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
        basis_renorm: bool = False,
        basis_method: str = "auto",
        moment_policy: str = "rotate",
        stagger: bool = True,
        early_refresh: bool = False,
        lazy: LazyRefresh | bool | None = None,
        residual: str | None = None,
        eps_mode: str = "torch",
        decay_order: str = "before",
        stochastic_rounding: bool = True,
        seed: int = 0,
        rule: str = "adamw",
    ) -> None:
        options = {key: value for key, value in locals().items() if key not in ("self", "params", "__class__")}
        super().__init__(params, options)
