"""Updates of int8 weights: each adds a whole number of codes, rounded at random so that its expectation is right.

An update of x codes adds ``trunc(x)`` and, with probability ``|x - trunc(x)|``, one code more in the direction of x.
The grid stays where it is, so an element without an update keeps its code, and nothing is rounded twice. Only what
would leave [-127, 127] makes a group's scale grow, by a quarter or more; then all of the group is rounded, again at
random, to the new grid. Whether it grows depends on the values alone and not on the random numbers: else an update
would be lost whenever it happened to be rounded down. A group that fell to half of its range gets half the scale and
doubled codes, which is exact.
The random number of an element is a function of (seed, key, step, index): tiles and resumed runs get the same bits.
Shapes: M rows, N columns, Q groups of a row, B elements of a group, K groups that are picked.
Source: written down for sticky scales here; stochastic rounding of int8 weights: Q-GaLore, arXiv 2407.08296, section
3.2. Differs from the paper: there every step requantises every weight on a new grid, in bf16.
"""

import torch
from torch import Tensor

from featherweight import kernels
from featherweight.errors import ShapeError
from featherweight.quant.int8_weight import (
    LARGEST_CODE,
    SMALLEST_SCALE,
    Int8Weight,
    exact_scale,
    fitted_scale,
    safe_scale,
)
from featherweight.quant.rounding import key_pairs, uniform

GROWTH = 1.25
"""Smallest factor by which a scale grows."""
HALF_RANGE = 62
"""Groups whose largest code is this or less can be doubled, and keep their headroom."""


@torch.no_grad()
def add_to_int8_(
    weight: Int8Weight,
    update: Tensor,
    *,
    beta: float = 1.0,
    seed: int,
    key: int,
    step: int,
    offset: int = 0,
    stochastic: bool = True,
) -> None:
    """Compute ``weight <- beta * weight + update`` in codes.

    A group whose update is not finite reads as NaN from then on, as an ordinary weight would.

    Args:
        weight: (M, N), written in place; a view on some rows will do.
        update: (M, N) float32. Not modified.
        beta: factor of the weight; 1 without decay.
        seed: seed of the run.
        key: tells this weight from others.
        step: optimizer step; every step draws new random numbers.
        offset: index of the weight's first element in its parameter.
        stochastic: False rounds updates to nearest: those below half a code are lost.
    Raises:
        ShapeError: if the shapes differ.
    Cost: about 8 ns per element on one CPU thread; float32 temporaries of a tile.
    Example:
        >>> weight = Int8Weight.quantize(torch.eye(2))
        >>> add_to_int8_(weight, torch.full((2, 2), 0.016), seed=0, key=0, step=1)
        >>> weight.codes.tolist()
        [[127, 2], [2, 127]]
    """
    if update.shape != weight.shape:
        raise ShapeError(
            f"add_to_int8_: update={tuple(update.shape)} does not fit weight={tuple(weight.shape)}; expected equal "
            "shapes. Pass the same rows of both."
        )
    if kernels.run_on(update) and kernels.int8_update.fits(weight.codes, weight.block_scale, weight.group_size):
        kernels.int8_update.add_(
            weight.codes,
            weight.block_scale,
            update.float(),
            group_size=weight.group_size,
            beta=beta,
            offset=offset,
            key_pair=key_pairs(seed, key, step, whole_words=True) if stochastic else None,
        )
        return
    columns = weight.shape[1]
    for start, stop in weight.row_tiles():
        rows, part = weight.rows(start, stop), update[start:stop].float()
        if stochastic:
            first = offset + start * columns
            numbers = uniform(seed, key, step, first, part.numel(), part.device).view(part.shape)
            tensors = [part, numbers]
        else:
            tensors = [part]
        for codes, scale, *views in rows.parts(*tensors):
            _add_to_groups_(codes, scale, views[0], beta, views[1] if stochastic else None)


def _add_to_groups_(codes: Tensor, scale: Tensor, update: Tensor, beta: float, numbers: Tensor | None) -> None:
    """Add to groups (M, Q, B) with scales (M, Q, 1)."""
    delta = update / scale
    if beta != 1.0:
        delta.add_(codes, alpha=beta - 1)
    largest = (delta + codes).abs_().amax(dim=-1)
    new = _round(delta, numbers).add_(codes)
    # Not below 127: too large, not finite, or of a group of zeros (divided by 0). Rare, so one wait for the device.
    leaves_range, is_small = ~(largest < LARGEST_CODE), largest <= HALF_RANGE
    if bool((leaves_range | is_small).any()):
        _rescale_(codes, scale, update, beta, numbers, new, leaves_range.nonzero(as_tuple=True))
        _double_(codes, scale, new, is_small.nonzero(as_tuple=True))
    codes.copy_(new)


def _round(delta: Tensor, numbers: Tensor | None) -> Tensor:
    """Round to whole numbers, at random or to nearest; `delta` may be overwritten."""
    if numbers is None:
        return delta.round_()
    # By magnitude and sign, because torch's trunc is ten times slower than its floor on a CPU.
    magnitude = delta.abs()
    whole = magnitude.floor()
    # 1 where the fraction is at least the random number: the quotient is 1 or more just then.
    whole.add_(magnitude.sub_(whole).div_(numbers).clamp_(max=1).floor_())
    return torch.copysign(whole, delta, out=whole)


def _rescale_(
    codes: Tensor,
    scale: Tensor,
    update: Tensor,
    beta: float,
    numbers: Tensor | None,
    new: Tensor,
    index: tuple[Tensor, ...],
) -> None:
    """Let the scales of some groups grow where their values leave the range; writes `scale` and `new`."""
    if not index[0].numel():
        return
    old_KB, scale_K1, update_KB = codes[index].float(), scale[index], update[index]
    values_KB = old_KB * scale_K1 * beta + update_KB
    largest_K1 = values_KB.abs().amax(dim=-1, keepdim=True)
    # Exactly, as the sum of a code and a tiny update may have been rounded to the end of the range.
    delta_KB = update_KB / scale_K1 + old_KB * (beta - 1)
    whole_KB = delta_KB.trunc()
    reached_KB = old_KB + whole_KB
    is_beyond = (reached_KB.abs() == LARGEST_CODE) & ((delta_KB - whole_KB) * reached_KB > 0)
    fits_K1 = ~((reached_KB.abs() > LARGEST_CODE) | is_beyond).any(dim=-1, keepdim=True)
    fits_K1 &= (scale_K1 > 0) & delta_KB.isfinite().all(dim=-1, keepdim=True)

    grown_K1 = torch.maximum(exact_scale(scale_K1 * GROWTH), fitted_scale(largest_K1))
    fresh_KB = _round(values_KB / safe_scale(grown_K1), None if numbers is None else numbers[index])
    fresh_KB.clamp_(-LARGEST_CODE, LARGEST_CODE)
    is_finite_K1 = largest_K1.isfinite() & grown_K1.isfinite()
    fresh_KB = torch.where(is_finite_K1, fresh_KB, 0.0)
    scale[index] = torch.where(fits_K1, scale_K1, torch.where(is_finite_K1, grown_K1, torch.nan))
    # The sum that was rounded may lie a unit in the last place further out than the one that was judged.
    kept_KB = new[index].clamp_(-LARGEST_CODE, LARGEST_CODE)
    new[index] = torch.where(fits_K1, kept_KB, fresh_KB)


def _double_(codes: Tensor, scale: Tensor, new: Tensor, index: tuple[Tensor, ...]) -> None:
    """Halve the scale and double the codes of groups that moved and use half of the range; writes `scale` and `new`."""
    if not index[0].numel():
        return
    new_KB, scale_K1 = new[index], scale[index]
    has_moved_K1 = (new_KB != codes[index]).any(dim=-1, keepdim=True) & (new_KB != 0).any(dim=-1, keepdim=True)
    doubles_K1 = has_moved_K1 & (scale_K1 > 2 * SMALLEST_SCALE)
    new[index] = torch.where(doubles_K1, 2 * new_KB, new_KB)
    scale[index] = torch.where(doubles_K1, scale_K1 / 2, scale_K1)
