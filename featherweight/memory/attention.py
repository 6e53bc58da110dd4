"""Attention as a GPU computes it, in bytes: what each of PyTorch's three implementations keeps and takes.

Shapes: B batch, H heads, G key heads, L queries, S keys, D head dimension. Sources: the choice of an implementation is
that of PyTorch's `sdp_utils.cpp`; what flash attention's backward pass takes is in `flash_api.cpp`; that autocast casts
its arguments, the mask among them, is in `autocast_mode.cpp`.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from featherweight.memory.cost import StepCost

_FLASH_LARGEST_HEAD = 256


def attention_on_cuda(
    cost: StepCost | None,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Take the place of `F.scaled_dot_product_attention` in a simulated step of a GPU (sm80 or newer).

    Args:
        cost: counts its arithmetic, or None.
        query: (B, H, L, D) fake.
        key: (B, G, S, D) fake.
        value: (B, G, S, D) fake.
        attn_mask: additive or boolean, broadcast to (B, H, L, S), or None.
        dropout_p: chance of a dropped weight.
        is_causal: whether later keys are hidden.
        scale: of the scores.
        enable_gqa: whether G may be smaller than H.
    Returns:
        (B, H, L, D) fake; under autocast in its dtype.
    """
    query, key, value = (_as_autocast_does(one) for one in (query, key, value))
    if attn_mask is not None:
        attn_mask = _as_autocast_does(attn_mask)
    is_half = query.dtype in (torch.float16, torch.bfloat16)
    fits_flash = is_half and attn_mask is None and query.shape[-1] <= _FLASH_LARGEST_HEAD
    if fits_flash:
        return _FlashAttention.apply(query, key, value, is_causal, cost)
    if query.shape[1] == key.shape[1]:
        return _EfficientAttention.apply(query, key, value, attn_mask, is_causal, cost)
    options: dict[str, Any] = {"scale": scale, "enable_gqa": enable_gqa}
    return torch.ops.aten._scaled_dot_product_attention_math(
        query, key, value, attn_mask, dropout_p, is_causal, **options
    )[0]


def _as_autocast_does(tensor: Tensor) -> Tensor:
    """Cast a number of fewer than 64 bits to autocast's dtype, if autocast is on; booleans stay."""
    device_type = tensor.device.type
    if not torch.is_autocast_enabled(device_type) or not tensor.is_floating_point() or tensor.dtype == torch.float64:
        return tensor
    return tensor.to(torch.get_autocast_dtype(device_type))


class _FlashAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, is_causal: bool, cost: StepCost | None) -> Tensor:
        _count(ctx, cost, query, key, is_causal)
        batch, heads, length, width = query.shape
        # Laid out as (B, L, H, D), so that what follows needs no copy.
        output = query.new_empty(batch, length, heads, width).transpose(1, 2)
        log_sums = query.new_empty((batch, heads, length), dtype=torch.float32)
        ctx.save_for_backward(query, key, value, output, log_sums)
        return output

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, _, _ = ctx.saved_tensors
        ctx.count_backward(query, key)
        batch, heads, length, width = query.shape
        rounded, wide = -(-length // 128) * 128, -(-width // 32) * 32
        results = [torch.empty_like(one) for one in (query, key, value)]
        scratch = [
            query.new_empty((batch, heads, rounded), dtype=torch.float32),
            query.new_empty((batch, rounded, heads, wide), dtype=torch.float32),
        ]
        if key.shape[1] != heads:  # gradients of each query head, summed at the end
            scratch += [key.new_empty(batch, key.shape[2], heads, width) for _ in range(2)]
        del scratch
        return (*results, None, None)


class _EfficientAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        is_causal: bool,
        cost: StepCost | None,
    ) -> Tensor:
        _count(ctx, cost, query, key, is_causal)
        batch, heads, length, width = query.shape
        output = query.new_empty(batch, length, heads, width).transpose(1, 2)
        log_sums = query.new_empty((batch, heads, -(-length // 32) * 32), dtype=torch.float32)
        ctx.save_for_backward(query, key, value, output, log_sums, *(() if mask is None else (mask,)))
        return output

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value = ctx.saved_tensors[:3]
        ctx.count_backward(query, key)
        results = [torch.empty_like(one) for one in (query, key, value)]
        delta = query.new_empty(query.shape[:3], dtype=torch.float32)
        del delta
        return (*results, None, None, None)


def _count(ctx: Any, cost: StepCost | None, query: Tensor, key: Tensor, is_causal: bool) -> None:
    def count(products: int, query: Tensor, key: Tensor) -> None:
        if cost is not None:
            cost.add_attention(query, key, products=products, is_causal=is_causal)

    count(2, query, key)
    ctx.count_backward = partial(count, 5)
