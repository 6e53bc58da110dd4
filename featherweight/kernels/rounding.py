"""Stochastic rounding to bfloat16 in one pass, alone or with the update of the weight that it ends.

The twin is `featherweight.quant.rounding`: the same hash, the same bits. `hashed` and `rounded_to_bf16` also serve the
other kernels.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from featherweight.kernels import KeyPair, launch
from featherweight.kernels.launch_check import Argument, check_launch
from featherweight.kernels.native import mark_written
from featherweight.tiles import tiles

SPAN_ELEMENTS = 1 << 24
"""Elements that share a pair of keys."""
BLOCK = 1024

LATE = ["first", "first_key", "second_key"]
"""Integers that differ from launch to launch: the compiler makes no variants of them for 1 and multiples of 16."""


@triton.jit
def hashed(words, first_key, second_key):
    """Hash uint32 counters with two keys."""
    words ^= first_key.to(tl.uint32, bitcast=True)
    words ^= words >> 16
    words *= 0x7FEB352D
    words ^= words >> 15
    words ^= second_key.to(tl.uint32, bitcast=True)
    words *= 0x846CA68B
    return words ^ (words >> 16)


@triton.jit
def rounded_to_bf16(values, index, first_key, second_key):
    """Round float32 values; two elements share a word of the hash, the even one its lower half."""
    words = hashed((index >> 1).to(tl.uint32), first_key, second_key)
    bits = (words >> ((index & 1) << 4).to(tl.uint32)) & 0xFFFF
    raw = values.to(tl.uint32, bitcast=True)
    magnitude = raw & 0x7FFFFFFF
    # Sums above the largest finite number are cut, then the maximum restores infinities and NaN.
    rounded = tl.maximum(tl.minimum(magnitude + bits, 0x7F7FFFFF), magnitude)
    # A NaN whose payload lies in the lower half only would be cut to infinity: set its quiet bit.
    rounded = tl.where(magnitude > 0x7F800000, rounded | 0x00400000, rounded)
    return ((rounded | (raw ^ magnitude)) >> 16).to(tl.uint16).to(tl.bfloat16, bitcast=True)


@triton.jit(do_not_specialize=LATE)
def write_kernel(
    out, source, count, alpha, beta, first, first_key, second_key, IS_UPDATE: tl.constexpr, BLOCK: tl.constexpr
):
    """Write ``round(source)``, or ``round(beta * out + alpha * source)``."""
    position = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = position < count
    values = tl.load(source + position, mask=inside, other=0.0)
    if IS_UPDATE:
        weight = tl.load(out + position, mask=inside, other=0.0).to(tl.float32)
        values = tl.fma(values, alpha, weight * beta)
        tl.debug_barrier()  # whichever thread reads what another one writes, it has read
    tl.store(out + position, rounded_to_bf16(values, first + position, first_key, second_key), mask=inside)


def stochastic_round_(out: Tensor, values: Tensor, *, offset: int, key_pair: KeyPair) -> Tensor:
    """Write `values` to a bfloat16 tensor with stochastic rounding.

    Args:
        out: contiguous bfloat16. Overwritten.
        values: same shape, float32. Not modified.
        offset: index of the first element, as the hash counts.
        key_pair: keys of each span.
    Returns:
        `out`.
    Cost: reads 4 and writes 2 bytes an element.
    """
    return _write_(out, values, 1.0, 0.0, offset, key_pair, is_update=False)


def add_direction_(
    weight: Tensor, direction: Tensor, *, alpha: float, beta: float, offset: int, key_pair: KeyPair
) -> None:
    """Compute ``weight <- beta * weight + alpha * direction`` in float32, with stochastic rounding.

    Args:
        weight: contiguous bfloat16.
        direction: as many elements, float32.
        alpha: factor of the direction.
        beta: factor of the weight.
        offset: index of the weight's first element, as the hash counts.
        key_pair: keys of each span.
    Cost: reads 6 and writes 2 bytes an element.
    """
    _write_(weight, direction, alpha, beta, offset, key_pair, is_update=True)


def _write_(
    out: Tensor, source: Tensor, alpha: float, beta: float, offset: int, key_pair: KeyPair, *, is_update: bool
) -> Tensor:
    source, numel = source.contiguous(), out.numel()
    check_launch(
        "rounding",
        out.device,
        Argument("out", out, numel, torch.bfloat16),
        Argument("source", source, numel, torch.float32),
    )
    flat_out, flat_source = out.view(-1), source.view(-1)
    for start, stop in tiles(out.numel(), SPAN_ELEMENTS, first=offset):
        part = slice(start - offset, stop - offset)
        span, first = divmod(start, SPAN_ELEMENTS)
        launch(
            write_kernel,
            triton.cdiv(stop - start, BLOCK),
            *(flat_out[part], flat_source[part], stop - start, alpha, beta, first, *key_pair(span)),
            IS_UPDATE=is_update,
            BLOCK=BLOCK,
        )
    mark_written(out)
    return out
