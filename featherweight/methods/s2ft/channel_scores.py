"""How much a channel matters, by its weight, its activation, its gradient, or what quantisation does to it.

Scores are computed per unit (a channel or a head). Everything here is arithmetic on tensors.
Shapes: C channels, K the other axis of the weight, U units of `unit` channels each.
Source: arXiv 2412.06289, section 4 (strategies); the product is the structured form of arXiv 2306.11695.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from featherweight.errors import ConfigError
from featherweight.quant.blockwise import dequantize_uniform, quantize_uniform

NEEDS_DATA = frozenset({"activation", "product", "gradient", "perturbation"})
"""Strategies that look at data."""


@dataclass
class ChannelStatistics:
    """What calibration has seen of the channels of one module; float32, on the module's device."""

    mean_square: Tensor
    """(C,) mean of the squared activation over tokens."""
    unit_norm: Tensor
    """(U,) mean over tokens of the norm over the channels of a unit."""
    gradient_norm: Tensor | None = None
    """(U,) mean over micro-batches of the norm of the weight's gradient in a unit."""


def channel_scores(
    strategy: str,
    weight_CK: Tensor,
    unit: int,
    statistics: ChannelStatistics | None = None,
    *,
    spectral_rank: int = 64,
) -> Tensor:
    """Return the score of each unit.

    - weight: norm of the unit's weights.
    - activation: mean over tokens of the norm of the unit's activation.
    - product: ``(sum_j |W_j|^2 mean_t x_tj^2)^(1/2)`` over the channels j of the unit.
    - gradient: mean over micro-batches of the norm of the gradient of the unit's weights.
    - spectral: weight, or product if there are statistics, of the weight's best approximation of a low rank.
    - perturbation: as product, with the error of rounding the weight to 4 bits in place of the weight.

    Args:
        strategy: its name.
        weight_CK: (C, K), one row for each channel.
        unit: channels of a unit; C is a multiple of it.
        statistics: what calibration has seen.
        spectral_rank: of that approximation.
    Returns:
        (U,) float32.
    Raises:
        ConfigError: if the strategy needs statistics and there are none.
    Example:
        >>> channel_scores("weight", torch.tensor([[3.0, 4.0], [0.0, 1.0]]), unit=1)
        tensor([5., 1.])
    """
    if strategy in NEEDS_DATA and statistics is None:
        raise ConfigError(
            f"S2FTConfig: selection={strategy!r} needs data to look at; expected statistics of activations. Call "
            f"config = fw.s2ft.select(model, data, selection={strategy!r})."
        )
    if strategy == "activation":
        assert statistics is not None, "checked above"
        return statistics.unit_norm.float()
    if strategy == "gradient":
        assert statistics is not None and statistics.gradient_norm is not None, "calibration was asked for it"
        return statistics.gradient_norm.float()
    wide_CK = weight_CK.detach().float()
    if strategy == "spectral":
        wide_CK = _low_rank(wide_CK, spectral_rank)
    elif strategy == "perturbation":
        wide_CK = wide_CK - _rounded(wide_CK)
    square_C = wide_CK.square().sum(-1)
    if statistics is not None and strategy != "weight":
        square_C = square_C * statistics.mean_square.to(square_C)
    return square_C.view(-1, unit).sum(-1).sqrt()


def _low_rank(weight: Tensor, rank: int) -> Tensor:
    if rank >= min(weight.shape):
        return weight
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # the sketch is random, the caller's generator is not ours to move
        left, values, right = torch.svd_lowrank(weight.cpu(), q=min(rank + 8, min(weight.shape)), niter=4)
    return ((left[:, :rank] * values[:rank]) @ right[:, :rank].T).to(weight.device)


def _rounded(weight: Tensor) -> Tensor:
    block = 64
    flat = torch.nn.functional.pad(weight.reshape(-1), (0, -weight.numel() % block))
    codes, scale, zero_point = quantize_uniform(flat, 4, block)
    return dequantize_uniform(codes, scale, zero_point, 4, block, flat.shape)[: weight.numel()].view_as(weight)
