"""Updates of int8 weights in one pass and without waiting for the device: growth, new rounding and doubling included.

The twin is `featherweight.quant.int8_update`, which says what is computed and why. There a step asks the device whether
any group leaves its range; here each program asks itself.
Shapes: G groups of a program, B elements of a group (up to a power of two).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from featherweight.kernels import KeyPair, launch
from featherweight.kernels.launch_check import Argument, check_launch
from featherweight.kernels.native import mark_written
from featherweight.kernels.rounding import SPAN_ELEMENTS, hashed
from featherweight.tiles import tiles

ELEMENTS = 1024
"""Elements of a program, if groups are not longer."""
MAX_GROUP_SIZE = 4096
"""Longer groups would not stay in registers."""
LATE = ["first", "first_key", "second_key", "next_first_key", "next_second_key"]
"""Integers that differ from launch to launch: the compiler makes no variants of them for 1 and multiples of 16."""

LARGEST_CODE = tl.constexpr(127)
FITTED_CODE = tl.constexpr(125.0)
HALF_RANGE = tl.constexpr(62)
GROWTH = tl.constexpr(1.25)
SMALLEST_SCALE = tl.constexpr(2.0**-100)
SPAN = tl.constexpr(SPAN_ELEMENTS)


@triton.jit
def largest_magnitude(values_GB):
    """Return the largest magnitude of each row, NaN if one is NaN: as integers, floats without sign are in order."""
    bits_GB = values_GB.to(tl.int32, bitcast=True) & 0x7FFFFFFF
    return tl.max(bits_GB, axis=1).to(tl.float32, bitcast=True)


@triton.jit
def is_finite(values):
    """Say which values are finite."""
    return tl.abs(values) < float("inf")


@triton.jit
def has_any(flags_GB):
    """Say of each row whether it has a true flag."""
    return tl.max(flags_GB.to(tl.int32), axis=1) > 0


@triton.jit
def exact_scale(scale):
    """Round to 17 significant bits."""
    return ((scale.to(tl.int32, bitcast=True) + 64) & -128).to(tl.float32, bitcast=True)


@triton.jit
def uniform(index, first_key, second_key, next_first_key, next_second_key):
    """Return a random number in (0, 1] for each index; those beyond a span have the keys of the next one."""
    is_next = index >= SPAN
    words = (index & (SPAN - 1)).to(tl.uint32)
    words = tl.where(is_next, hashed(words, next_first_key, next_second_key), hashed(words, first_key, second_key))
    return (words & 0x7FFFFFFF).to(tl.int32).to(tl.float32) * 2.0**-31 + 2.0**-32


@triton.jit
def rounded(values, numbers, IS_STOCHASTIC: tl.constexpr):
    """Round to whole numbers, at random or to nearest; right for magnitudes below 2**22, larger ones are not used."""
    if IS_STOCHASTIC:
        magnitude = tl.abs(values)
        whole = tl.floor(magnitude)
        whole += (magnitude - whole >= numbers).to(tl.float32)
        return tl.where(values < 0, -whole, whole)
    return (values + 12582912.0) - 12582912.0


@triton.jit
def regrown(old_GB, scale_G, change_GB, delta_GB, kept_GB, beta, numbers_GB, IS_STOCHASTIC: tl.constexpr):
    """Return new codes and scales of groups whose values leave the range; `kept_GB` for those that do not after all."""
    values_GB = old_GB * scale_G[:, None] * beta + change_GB
    largest_G = largest_magnitude(values_GB)
    magnitude_GB = tl.floor(tl.abs(delta_GB))
    whole_GB = tl.where(delta_GB < 0, -magnitude_GB, magnitude_GB)
    reached_GB = old_GB + whole_GB
    is_beyond_GB = (tl.abs(reached_GB) == LARGEST_CODE) & ((delta_GB - whole_GB) * reached_GB > 0)
    is_out_GB = (tl.abs(reached_GB) > LARGEST_CODE) | is_beyond_GB | (is_finite(delta_GB) == 0)
    fits_G = (has_any(is_out_GB) == 0) & (scale_G > 0)

    fitted_G = tl.maximum(exact_scale(tl.div_rn(largest_G, FITTED_CODE)), SMALLEST_SCALE)
    fitted_G = tl.where(largest_G > 0, fitted_G, largest_G)
    least_G = exact_scale(scale_G * GROWTH)
    grown_G = tl.maximum(least_G, fitted_G)
    is_finite_G = is_finite(largest_G) & is_finite(least_G) & is_finite(fitted_G)
    divisor_G = tl.where(is_finite_G & (grown_G != 0), grown_G, 1.0)
    fresh_GB = rounded(tl.div_rn(values_GB, divisor_G[:, None]), numbers_GB, IS_STOCHASTIC)
    fresh_GB = tl.minimum(tl.maximum(fresh_GB, -LARGEST_CODE), LARGEST_CODE)
    fresh_GB = tl.where(is_finite_G[:, None], fresh_GB, 0.0)
    grown_G = tl.where(is_finite_G, grown_G, float("nan"))
    # The sum that was rounded may lie a unit in the last place further out than the one that was judged.
    kept_GB = tl.minimum(tl.maximum(kept_GB, -LARGEST_CODE), LARGEST_CODE)
    return tl.where(fits_G[:, None], kept_GB, fresh_GB), tl.where(fits_G, scale_G, grown_G)


@triton.jit(do_not_specialize=LATE)
def add_kernel(
    codes,
    scales,
    update,
    groups,
    columns,
    alpha,
    beta,
    beta_minus_1,
    first,
    first_key,
    second_key,
    next_first_key,
    next_second_key,
    GROUP_SIZE: tl.constexpr,
    IS_STOCHASTIC: tl.constexpr,
    G: tl.constexpr,
    B: tl.constexpr,
):
    """Compute ``weight <- beta * weight + alpha * update`` for G groups."""
    group_G = tl.program_id(0) * G + tl.arange(0, G)
    groups_of_row = tl.cdiv(columns, GROUP_SIZE)
    row_G, place_B = group_G // groups_of_row, tl.arange(0, B)
    column_GB = (group_G % groups_of_row)[:, None] * GROUP_SIZE + place_B[None, :]
    inside_GB = (group_G < groups)[:, None] & (place_B < GROUP_SIZE)[None, :] & (column_GB < columns)
    index_GB = row_G[:, None] * columns + column_GB
    old_GB = tl.load(codes + index_GB, mask=inside_GB, other=0).to(tl.float32)
    change_GB = tl.load(update + index_GB, mask=inside_GB, other=0.0) * alpha
    scale_G = tl.load(scales + group_G, mask=group_G < groups, other=1.0)
    numbers_GB = change_GB
    if IS_STOCHASTIC:
        numbers_GB = uniform(first + index_GB, first_key, second_key, next_first_key, next_second_key)

    quotient_GB = tl.div_rn(change_GB, tl.where(scale_G == 0, 1.0, scale_G)[:, None])
    delta_GB = tl.fma(old_GB, beta_minus_1, quotient_GB)
    largest_G = largest_magnitude(delta_GB + old_GB)
    new_GB = old_GB + rounded(delta_GB, numbers_GB, IS_STOCHASTIC)
    is_leaving_G = ((largest_G < LARGEST_CODE) & (scale_G != 0)) == 0
    is_small_G = (largest_G <= HALF_RANGE) & (scale_G != 0)
    tl.debug_barrier()  # whichever thread reads what another one writes, it has read
    if tl.max(is_leaving_G.to(tl.int32)) > 0:
        # The sum is not fused here, as it decides whether a code beyond the range was reached exactly.
        delta_GB = quotient_GB + old_GB * beta_minus_1
        regrown_GB, regrown_G = regrown(old_GB, scale_G, change_GB, delta_GB, new_GB, beta, numbers_GB, IS_STOCHASTIC)
        new_GB = tl.where(is_leaving_G[:, None], regrown_GB, new_GB)
        tl.store(scales + group_G, regrown_G, mask=is_leaving_G & (group_G < groups))
    if tl.max(is_small_G.to(tl.int32)) > 0:
        has_moved_G = has_any(new_GB != old_GB) & has_any(new_GB != 0)
        doubles_G = is_small_G & has_moved_G & (scale_G > 2 * SMALLEST_SCALE)
        new_GB = tl.where(doubles_G[:, None], 2 * new_GB, new_GB)
        tl.store(scales + group_G, scale_G * 0.5, mask=doubles_G & (group_G < groups))
    tl.store(codes + index_GB, new_GB.to(tl.int32).to(tl.int8), mask=inside_GB)


def fits(codes: Tensor, block_scale: Tensor, group_size: int) -> bool:
    """Say whether `add_` serves a weight: groups that stay in registers, rows that follow each other."""
    is_dense = codes.is_contiguous() and block_scale.is_contiguous()
    return is_dense and group_size <= MAX_GROUP_SIZE and codes.shape[1] <= SPAN_ELEMENTS


def shape_of_program(group_size: int) -> tuple[int, int, int]:
    """Return G, B and the number of warps: eight elements a thread."""
    length = triton.next_power_of_2(group_size)
    groups = max(1, ELEMENTS // length)
    return groups, length, groups * length // 256


def add_(
    codes: Tensor,
    block_scale: Tensor,
    update: Tensor,
    *,
    group_size: int,
    alpha: float = 1.0,
    beta: float,
    offset: int,
    key_pair: KeyPair | None,
) -> None:
    """Compute ``weight <- beta * weight + alpha * update`` in codes.

    Args:
        codes: (M, N) int8, contiguous; written in place.
        block_scale: (M, Q) float32, contiguous; written in place.
        update: (M, N) float32. Not modified.
        group_size: elements of a row that share a scale.
        alpha: factor of the update.
        beta: factor of the weight.
        offset: index of the first element, as the hash counts.
        key_pair: keys of each span; None rounds to nearest.
    Raises:
        ShapeError: if codes, scales and update do not belong to one weight.
    Cost: reads 5 and writes 1 byte an element.
    """
    update, (rows, columns) = update.contiguous(), codes.shape
    check_launch(
        "int8_update",
        codes.device,
        Argument("codes", codes, rows * columns, torch.int8),
        Argument("block_scale", block_scale, rows * triton.cdiv(columns, group_size), torch.float32),
        Argument("update", update, rows * columns, torch.float32),
    )
    columns = max(1, columns)
    groups_of_program, group_length, warps = shape_of_program(group_size)
    # So few rows that their elements lie in two spans at most.
    for start, stop in tiles(codes.shape[0], max(1, SPAN_ELEMENTS // columns)):
        span, first = divmod(offset + start * columns, SPAN_ELEMENTS)
        keys = (0, 0, 0, 0) if key_pair is None else (*key_pair(span), *key_pair(span + 1))
        groups = block_scale[start:stop].numel()
        launch(
            add_kernel,
            triton.cdiv(groups, groups_of_program),
            *(codes[start:stop], block_scale[start:stop], update[start:stop], groups, columns),
            *(alpha, beta, beta - 1, first, *keys),
            GROUP_SIZE=group_size,
            IS_STOCHASTIC=key_pair is not None,
            G=groups_of_program,
            B=group_length,
            num_warps=warps,
        )
    mark_written(codes, block_scale)
