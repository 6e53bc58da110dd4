"""Tensor-GaLore and TensorGRaD: AdamW whose moments live in a small core of the gradient tensor."""

from collections.abc import Iterable
from typing import Any

from featherweight.linalg.tucker_fit import MAX_WORKSPACE_BYTES
from featherweight.optim.low_rank import LowRankOptimizer
from featherweight.optim.tucker.options import complete_options, joined


class TensorGaLoreAdamW(LowRankOptimizer):
    """AdamW in a Tucker subspace of each gradient tensor, real or complex.

    Every `update_proj_gap` steps a tensor G (n_1, .., n_D) gets bases U_k (n_k, r_k), one for each mode. Each step::

        C = G x_1 U_1^H .. x_D U_D^H                     the core, (r_1, .., r_D)
        M = b1 M + (1 - b1) C;   V = b2 V + (1 - b2) |C|^2      V is real
        W <- (1 - lr wd) W - lr scale (M / (1 - b1^t)) / (sqrt(V / (1 - b2^t)) + eps) x_1 U_1 .. x_D U_D

    A mode with r_k = n_k has no basis, so at full rank this is AdamW. Vectors, matrices and tensors of fewer than
    `min_numel` numbers keep AdamW's moments and run at lr.

    Args:
        params: tensors or parameter groups; a flat list is projected wherever it saves something. See
            `fw.pde.param_groups`.
        lr: learning rate.
        betas: decay of first and second moment.
        eps: added to the root of the second moment.
        weight_decay: decoupled, with factor lr, for every parameter.
        rank: share of the entries that the core has; a whole number that caps the rank of every mode; a list with a
            share of its size or a rank for each mode; or "auto": ranks that follow the spectrum of each tensor's first
            gradient, within `rank_budget` ("tucker" and "tucker_channels"). For "matrix" and "slices" of the one side
            that has a basis.
        rank_budget: largest share of the entries that a core has whose ranks are "auto". A tensor is left as it is
            until its first gradient that is not zero.
        update_proj_gap: optimizer steps between refreshes.
        scale: factor of the update; "auto" is ``sqrt(N / core entries)``, with which it has the root mean square of
            AdamW's.
        proj_type: "tucker" (all modes), "tucker_channels" (the first two), "matrix" (one side of the unfolding of the
            first `first_dims` modes against the rest: GaLore), "slices" (a basis for each frequency), "select" (the
            first two rotated, of the others the strongest indices).
        rank_counts: what a share counts; see `tucker_ranks`.
        first_dims: modes in the rows of "matrix".
        min_numel: smaller tensors are not projected.
        basis_method: "auto" (sequential truncation), "st_hosvd", "hooi" or "subspace" (warm), "randomized"; see
            `fit_tucker`.
        moment_policy: what a refresh does to the moments: "rotate" them, "align" the new bases to the old ones and keep
            them, "keep" (official), "reset".
        stagger: spread the refreshes of the tensors over the gap, so that no step is slow.
        skip_tol: leave out a refresh if the share of the gradient's energy inside the old subspace has changed by less
            than this, relatively. 0 never does.
        state_bits: 32, 16, 8 or 4 for the moments.
        basis_bits: 32, 16, 8 or 4; None is 32.
        complex_mode: "modulus" (one second moment for a complex number: 12 instead of 16 bytes, and a step that turns
            with the phase) or "real_pair" (as torch.optim).
        complex_pair: real parameters with a last axis of 2 are complex numbers.
        sparse_ratio: share of the entries that have moments of their own, outside of the core (TensorGRaD); 0 is none.
        sparse_select: "topk" by modulus, "randk" (no indices are kept), "probability" in proportion to the modulus.
        sparse_order: "low_rank_first" (entries of what the subspace loses) or "sparse_first" (the subspace gets the
            rest).
        sparse_weight: factor of the sparse update, beside lr.
        sparse_reset: zero the moments of the entries when others are chosen.
        eps_mode: "torch", or "official" (eps acts before bias correction).
        decay_order: "before" the update (torch.optim), or "after".
        stochastic_rounding: write bfloat16 weights with stochastic rounding.
        max_workspace_bytes: largest transient copy of an unfolding at a refresh.
        seed: of everything random.
        rule: "adamw" or "sgd".
        galore_params: parameters to project, as in neuraloperator's AdamW; `params` are then all others.
        neuraloperator: options under neuraloperator's names, such as `galore_rank` and `warm_restart`.
    Raises:
        ConfigError: for an option out of range.
    Cost: a projection and a back-projection a step, each 2 N r_k FLOPs for its first product (8 for complex numbers)
        and less for each other. State: two moments of the core and sum(n_k r_k) basis entries instead of 2 N.
    Source: arXiv 2501.02379. Differs from the official code: a real second moment, a conjugated matrix projection,
        refreshes when they are due, moments that follow the basis, no basis at full rank, plain-tensor state.
    Example:
        >>> import torch
        >>> weight = torch.nn.Parameter(torch.zeros(16, 16, 8, 5, dtype=torch.complex64))
        >>> optimizer = TensorGaLoreAdamW([weight], rank=0.25)
        >>> optimizer.state_bytes(), TensorGaLoreAdamW([weight], rank=1.0).state_bytes()
        (38240, 122888)
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        rank: float | int | str | list[int] | list[float] | tuple[int, ...] | tuple[float, ...] = 0.25,
        rank_budget: float = 0.25,
        update_proj_gap: int = 200,
        scale: float | str = 1.0,
        proj_type: str = "tucker",
        rank_counts: str = "core",
        first_dims: int = 1,
        min_numel: int = 1000,
        basis_method: str = "auto",
        moment_policy: str = "rotate",
        stagger: bool = True,
        skip_tol: float = 0.0,
        state_bits: int = 32,
        basis_bits: int | None = None,
        complex_mode: str = "modulus",
        complex_pair: bool = False,
        sparse_ratio: float = 0.0,
        sparse_select: str = "topk",
        sparse_order: str = "low_rank_first",
        sparse_weight: float = 1.0,
        sparse_reset: bool = True,
        eps_mode: str = "torch",
        decay_order: str = "before",
        stochastic_rounding: bool = True,
        max_workspace_bytes: int = MAX_WORKSPACE_BYTES,
        seed: int = 0,
        rule: str = "adamw",
        galore_params: Iterable[Any] | None = None,
        **neuraloperator: Any,
    ) -> None:
        others = ("self", "params", "galore_params", "neuraloperator", "__class__", "others")
        options = {key: value for key, value in locals().items() if key not in others} | neuraloperator
        super().__init__(joined(params, galore_params), complete_options(type(self).__name__, options))


class TensorGRaD(LowRankOptimizer):
    """Tensor-GaLore with a sparse branch: 5 % of the entries have moments of their own, the core has 20 %.

    Adam runs on the core, and on the chosen entries of what it loses, each with moments of its own::

        C = G x_1 U_1^H .. x_D U_D^H;   S = (G - C x_1 U_1 .. x_D U_D)[Omega]
        W <- (1 - lr wd) W - lr (scale D_C x_1 U_1 .. x_D U_D + sparse_weight scatter(D_S, Omega))

    Omega is chosen anew at every refresh, by default the largest entries of what the subspace loses.

    Args:
        params: see `TensorGaLoreAdamW`.
        lr: learning rate.
        rank: share of the entries of the core, or ranks.
        sparse_ratio: share of the entries in the sparse branch.
        options: all others of `TensorGaLoreAdamW`.
    Raises:
        ConfigError: for an option out of range.
    Cost: one more back-projection a step than `TensorGaLoreAdamW` with "low_rank_first"; indices cost 4 bytes an entry,
        none with "randk".
    Source: TensorGRaD, arXiv 2501.02379v2. Differs from the paper: the subspace comes first by default; its own
        behaviour is ``sparse_order="sparse_first"``. `p.grad` is never changed.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        *,
        rank: float | int | str | list[int] | list[float] | tuple[int, ...] | tuple[float, ...] = 0.20,
        sparse_ratio: float = 0.05,
        **options: Any,
    ) -> None:
        galore_params = options.pop("galore_params", None)
        options |= {"lr": lr, "rank": rank, "sparse_ratio": sparse_ratio}
        super().__init__(joined(params, galore_params), complete_options(type(self).__name__, options))
