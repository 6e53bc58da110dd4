"""What a growing layer holds: the spectrum of the product of its factors.

Shapes: M out_features, N in_features, K components, K0 at the start.
"""

import torch
from torch import Tensor

from featherweight.errors import ConfigError, NumericsError
from featherweight.linalg.factors import product_spectrum
from featherweight.linalg.random import keyed_generator
from featherweight.nn.low_rank_linear import LowRankLinear, activation_of

PROBES = 1024
"""Random inputs on which the spectrum of a layer with an activation is measured."""


def layer_spectrum(layer: LowRankLinear, name: str, start: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """Return the singular values of the product of a layer's factors, or of its change since the start.

    ``U V - U0 V0`` is the product of ``[U, -U0]`` and ``[V; V0]``, thin again. With an activation between the factors,
    V is taken as what it gives on random inputs.

    Args:
        layer: M x N, of K components.
        name: of the layer, for messages.
        start: (M, K0) and (K0, N), the factors that it began with; None measures the product itself.
    Returns:
        (K,) descending, or (min(K + K0, M, N),) for a change.
    Raises:
        ConfigError: if the factors are sharded.
        NumericsError: if a factor is NaN or infinite.
    """
    left, right = layer.U.weight, layer.V.weight
    if type(left).__name__ == "DTensor":
        raise ConfigError(
            f"InRank: '{name}' is sharded (DTensor) and cannot grow; expected whole factors. Use data parallelism "
            "without sharding until growth has ended."
        )
    if left.dtype != torch.float64:
        left, right = left.float(), right.float()
    if not bool(torch.isfinite(left).all() and torch.isfinite(right).all()):
        raise NumericsError(
            f"InRank: '{name}' has factors that are NaN or infinite; expected finite ones. Lower the learning "
            "rate, and go on from the checkpoint before."
        )
    if start is not None:
        left = torch.cat([left, -start[0].to(left)], 1)
        right = torch.cat([right, start[1].to(right)])
    if layer.activation is not None:
        right = _hidden_root(layer, right)
    values = product_spectrum(left, right)
    if start is not None:  # of a layer that did not move, what rounding leaves of a difference is no spectrum
        rounding = torch.finfo(left.dtype).eps * float(left.detach().norm() * right.detach().norm())
        values = torch.where(values > rounding, values, 0)
    return values


def _hidden_root(layer: LowRankLinear, right_KN: Tensor) -> Tensor:
    """Return (K, PROBES) whose Gram matrix is that of the hidden activations on random inputs of unit variance."""
    generator = keyed_generator(0, layer.in_features)
    inputs = torch.randn((PROBES, layer.in_features), generator=generator, dtype=right_KN.dtype).to(right_KN.device)
    return activation_of(layer)(inputs @ right_KN.mT).mT / PROBES**0.5
