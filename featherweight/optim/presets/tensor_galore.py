"""Tensor-GaLore and TensorGRaD: AdamW whose moments live in a small core of the gradient tensor."""

from collections.abc import Iterable, Mapping
from typing import Any, Unpack

from featherweight.optim.low_rank import LowRankOptimizer
from featherweight.optim.options import TensorOptions, options_of
from featherweight.optim.presets.arguments import TENSOR_GALORE, TENSORGRAD, complete, preset
from featherweight.optim.tucker.neuraloperator import from_neuraloperator, joined


def in_our_words(optimizer: LowRankOptimizer, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options in which those under neuraloperator's names have ours.

    Raises:
        ConfigError: for a name that is unknown.
    """
    known = options_of(TensorOptions)
    ours = {key: value for key, value in options.items() if key in known}
    theirs = {key: value for key, value in options.items() if key not in known}
    return {**ours, **from_neuraloperator(type(optimizer).__name__, theirs)}


@preset(TENSOR_GALORE)
class TensorGaLoreAdamW(LowRankOptimizer):
    """AdamW in a Tucker subspace of each gradient tensor, real or complex.

    Every `update_proj_gap` steps a tensor G (n_1, .., n_D) gets bases U_k (n_k, r_k) of its first two modes, the
    channels, or of every mode. Each step::

        C = G x_1 U_1^H .. x_D U_D^H                     the core, (r_1, .., r_D)
        M = b1 M + (1 - b1) C;   V = b2 V + (1 - b2) |C|^2      V is real
        D = scale (M / (1 - b1^t)) / (sqrt(V / (1 - b2^t)) + eps) x_1 U_1 .. x_D U_D
        R = G - C x_1 U_1 .. x_D U_D                     what the subspace loses, moved without state if complex
        W <- (1 - lr wd) W - lr (D + residual_weight R / rms(R))        rms over the channels of each frequency

    A mode with r_k = n_k has no basis, so at full rank this is AdamW. ``proj_type="tucker", residual=None`` is the
    paper's. Vectors, matrices and tensors of fewer than `min_numel` numbers keep AdamW's moments and run at lr.

    Args:
        params: tensors or parameter groups; a flat list is projected wherever it saves something. See
            `fw.pde.param_groups`.
        galore_params: parameters to project, as in neuraloperator's AdamW; `params` are then all others.
        neuraloperator: options under neuraloperator's names, such as `galore_rank` and `warm_restart`.
    Raises:
        ConfigError: for an option out of range.
    Cost: a projection and a back-projection a step, with the residual two of them, each 2 N r_k FLOPs for its first
        product (8 for complex numbers) and less for each other. State: two moments of the core and sum(n_k r_k) basis
        entries instead of 2 N.
    Source: arXiv 2501.02379. Differs from the paper: bases for the channels alone and the residual, which is ours (see
        docs/tensor_galore.md). Differs from the official code: a real second moment, a conjugated matrix projection,
        refreshes when they are due, moments that follow the basis, no basis at full rank, plain-tensor state.
    Example:
        >>> import torch
        >>> weight = torch.nn.Parameter(torch.zeros(16, 16, 8, 5, dtype=torch.complex64))
        >>> optimizer = TensorGaLoreAdamW([weight], rank=0.25)
        >>> optimizer.state_bytes(), TensorGaLoreAdamW([weight], rank=1.0).state_bytes()
        (32800, 122888)
    """

    def __init__(
        self,
        params: Iterable[Any],
        *positional: Any,
        galore_params: Iterable[Any] | None = None,
        **options: Unpack[TensorOptions],
    ) -> None:
        super().__init__(joined(params, galore_params), complete(self, positional, in_our_words(self, options)))


@preset(TENSORGRAD)
class TensorGRaD(LowRankOptimizer):
    """Tensor-GaLore with a sparse branch: 5 % of the entries have moments of their own, the core has 20 %.

    Adam runs on the core, and on the chosen entries of what it loses, each with moments of its own::

        C = G x_1 U_1^H .. x_D U_D^H;   S = (G - C x_1 U_1 .. x_D U_D)[Omega]
        W <- (1 - lr wd) W - lr (scale D_C x_1 U_1 .. x_D U_D + sparse_weight scatter(D_S, Omega))

    Omega is chosen anew at every refresh, by default the largest entries of what the subspace loses.

    Args:
        params: see `TensorGaLoreAdamW`.
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
        *positional: Any,
        galore_params: Iterable[Any] | None = None,
        **options: Unpack[TensorOptions],
    ) -> None:
        super().__init__(joined(params, galore_params), complete(self, positional, in_our_words(self, options)))
