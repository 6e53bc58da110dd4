"""Changing the number of components of a layer that trains, with the moments of its optimizer.

Shapes: M out_features, N in_features, K components.
"""

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from featherweight.linalg.factors import rebalance
from featherweight.nn.low_rank_linear import LowRankLinear
from featherweight.optim.exchange import exchange_parameter
from featherweight.optim.policies.moment_growth import Growth, Rotation


@torch.no_grad()
def grow(layer: LowRankLinear, live: int, optimizer: Optimizer | None, generator: torch.Generator) -> None:
    """Give a layer more components without changing its function.

    Args:
        layer: with fewer than `live` components.
        live: K after the growth.
        optimizer: holds U and V; new parameters take their places. None if there is none.
        generator: of the new rows of V, which are orthogonal to the old ones and of their mean size.
    """
    left, right = layer.U.weight, layer.V.weight
    wide = right if right.dtype == torch.float64 else right.float()
    new = torch.randn((live - layer.rank, layer.in_features), generator=generator, dtype=wide.dtype).to(wide.device)
    base = torch.linalg.qr(wide.mT).Q
    new = new - (new @ base) @ base.mT
    new = new * (wide.square().mean().sqrt() / new.square().mean().sqrt().clamp_min(1e-30))
    rows = torch.cat([right.detach(), new.to(right.dtype)])
    columns = torch.cat([left.detach(), left.new_zeros(left.shape[0], live - layer.rank)], 1)
    _exchange(layer, columns, rows, optimizer, Growth(1, live), Growth(0, live))


def _exchange(
    layer: LowRankLinear,
    left: Tensor,
    right: Tensor,
    optimizer: Optimizer | None,
    change_left: Growth | Rotation,
    change_right: Growth | Rotation,
) -> None:
    old_left, old_right = layer.U.weight, layer.V.weight
    new_left = nn.Parameter(left.to(old_left.dtype).contiguous(), requires_grad=old_left.requires_grad)
    new_right = nn.Parameter(right.to(old_right.dtype).contiguous(), requires_grad=old_right.requires_grad)
    if optimizer is not None:
        exchange_parameter(optimizer, old_left, new_left, change_left)
        exchange_parameter(optimizer, old_right, new_right, change_right)
    layer.U.weight, layer.V.weight = new_left, new_right
    layer.V.out_features = layer.U.in_features = right.shape[0]


def refactor(layer: LowRankLinear, kept: int, optimizer: Optimizer | None) -> None:
    """Balance the factors, keep the strongest components, and let the moments follow.

    With V' = M V and U' = U M^-1, gradients become M^-T dV and dU M^T.

    Args:
        layer: changed in place.
        kept: components that stay.
        optimizer: holds U and V; new parameters take their places. None if there is none.
    """
    left_MK, right_KN = layer.U.weight.detach(), layer.V.weight.detach()
    if left_MK.dtype != torch.float64:
        left_MK, right_KN = left_MK.float(), right_KN.float()
    new_left, new_right = rebalance(left_MK, right_KN)
    values = new_right.square().sum(1)  # of balanced factors: the singular values
    is_there = values > values.max().clamp_min(1e-30) * 1e-6
    # V' V'^T = diag(values), so M^-T = diag(1 / values) V' V^T; and M^T = (V^+)^T V'^T.
    scale = torch.where(is_there, 1 / values.clamp_min(1e-30), torch.zeros_like(values))
    inverse = scale[:, None] * (new_right @ right_KN.mT)
    transposed = torch.linalg.pinv(right_KN).mT @ new_right.mT
    change_left = Rotation(right=transposed[:, :kept])
    change_right = Rotation(left=inverse[:kept])
    # Copies: views would keep the storage of what was dropped, and no file takes a part of a storage.
    left, right = new_left[:, :kept].clone(), new_right[:kept].clone()
    _exchange(layer, left, right, optimizer, change_left, change_right)
