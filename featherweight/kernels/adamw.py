"""AdamW in one pass: moments in 8-bit codes or float32, and the weight with them if it is bfloat16 or float32.

The twins are `AdamWRule` (`featherweight.optim.policies.rules`) on moments that `featherweight.quant.blockwise` keeps,
and `add_direction_` (`featherweight.optim.step.weight_update`). Codes, scales and moments have their bits; so has the
direction where the twin's root rounds to nearest: on CUDA it does, on a CPU it may be off by 1.5 units in the last
place.
Shapes: G blocks of a program, B elements of a block.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from featherweight.kernels import launch
from featherweight.kernels.arguments import Options, Write
from featherweight.kernels.int8_update import largest_magnitude
from featherweight.kernels.launch_check import Argument, check_launch
from featherweight.kernels.native import mark_written
from featherweight.kernels.rounding import SPAN_ELEMENTS, rounded_to_bf16
from featherweight.tiles import tiles

BLOCK_SIZE = 256
"""Elements that share a scale."""
BLOCKS = 4
"""Blocks of a program."""
LATE = ["first_key", "second_key"]
"""Integers that differ from launch to launch: the compiler makes no variants of them for 1 and multiples of 16."""


class Codes(NamedTuple):
    """A moment in blocks of 256 codes."""

    codes: Tensor
    """(P,) uint8."""
    block_scale: Tensor
    """(ceil(P / 256),) float32."""
    values: Tensor
    """(256,) float32: what the codes stand for."""
    first_code: Tensor
    """(65536,) uint8: for each upper half of a float32, the code at the lower end of its interval."""
    next_boundary: Tensor
    """(65536,) float32: the only boundary between codes inside of this interval."""


@triton.jit
def dequantized(codes, scales, values, index_GB, block_G, inside_GB, is_block_G):
    """Read G blocks of a moment; 0 outside."""
    code_GB = tl.load(codes + index_GB, mask=inside_GB, other=0).to(tl.int32)
    scale_G = tl.load(scales + block_G, mask=is_block_G, other=0.0)
    return tl.where(inside_GB, tl.load(values + code_GB) * scale_G[:, None], 0.0)


@triton.jit
def quantize_(codes, scales, first_code, next_boundary, values_GB, index_GB, block_G, inside_GB, is_block_G):
    """Write G blocks of a moment: the nearest code of each value over the largest of its block."""
    largest_G = largest_magnitude(values_GB)
    normalized_GB = tl.div_rn(values_GB, tl.where(largest_G == 0, 1.0, largest_G)[:, None])
    upper_GB = (normalized_GB.to(tl.uint32, bitcast=True) >> 16).to(tl.int32)
    above_GB = normalized_GB > tl.load(next_boundary + upper_GB)
    code_GB = tl.load(first_code + upper_GB) + above_GB.to(tl.uint8)
    tl.store(codes + index_GB, code_GB, mask=inside_GB)
    tl.store(scales + block_G, largest_G, mask=is_block_G)


@triton.jit(do_not_specialize=LATE)
def adamw_kernel(
    grad,
    out,
    exp_avg,
    exp_avg_scale,
    exp_avg_values,
    exp_avg_first,
    exp_avg_next,
    exp_avg_sq,
    exp_avg_sq_scale,
    exp_avg_sq_values,
    exp_avg_sq_first,
    exp_avg_sq_next,
    count,
    rest1,
    beta2,
    rest2,
    correction1,
    correction2_sqrt,
    eps,
    alpha,
    beta,
    first_key,
    second_key,
    IN_CODES: tl.constexpr,
    IS_OFFICIAL: tl.constexpr,
    WRITES: tl.constexpr,
    G: tl.constexpr,
    B: tl.constexpr,
):
    """Update both moments; then write the direction, or the weight (`WRITES`: "direction", "float32", "bfloat16")."""
    block_G = tl.program_id(0) * G + tl.arange(0, G)
    index_GB = block_G[:, None] * B + tl.arange(0, B)[None, :]
    inside_GB = index_GB < count
    grad_GB = tl.load(grad + index_GB, mask=inside_GB, other=0.0).to(tl.float32)
    if IN_CODES:
        is_block_G = block_G * B < count
        m_GB = dequantized(exp_avg, exp_avg_scale, exp_avg_values, index_GB, block_G, inside_GB, is_block_G)
        v_GB = dequantized(exp_avg_sq, exp_avg_sq_scale, exp_avg_sq_values, index_GB, block_G, inside_GB, is_block_G)
    else:
        m_GB = tl.load(exp_avg + index_GB, mask=inside_GB, other=0.0)
        v_GB = tl.load(exp_avg_sq + index_GB, mask=inside_GB, other=0.0)

    # As torch's lerp: from the nearer end.
    is_near = rest1 < 0.5
    m_GB = tl.fma(grad_GB - m_GB, tl.where(is_near, rest1, rest1 - 1.0), tl.where(is_near, m_GB, grad_GB))
    v_GB = tl.fma(grad_GB * rest2, grad_GB, v_GB * beta2)
    root_GB = tl.sqrt_rn(v_GB)
    if IS_OFFICIAL:
        direction_GB = tl.div_rn(m_GB, root_GB + eps) * correction1
    else:
        direction_GB = tl.div_rn(tl.div_rn(m_GB, tl.div_rn(root_GB, correction2_sqrt) + eps), correction1)

    result_GB = direction_GB
    if WRITES != "direction":
        weight_GB = tl.load(out + index_GB, mask=inside_GB, other=0.0).to(tl.float32)
        result_GB = tl.fma(direction_GB, alpha, weight_GB * beta)
    if WRITES == "bfloat16":
        result_GB = rounded_to_bf16(result_GB, index_GB, first_key, second_key)

    tl.debug_barrier()  # whichever thread reads what another one writes, it has read
    if IN_CODES:
        first1, next1, first2, next2 = exp_avg_first, exp_avg_next, exp_avg_sq_first, exp_avg_sq_next
        quantize_(exp_avg, exp_avg_scale, first1, next1, m_GB, index_GB, block_G, inside_GB, is_block_G)
        quantize_(exp_avg_sq, exp_avg_sq_scale, first2, next2, v_GB, index_GB, block_G, inside_GB, is_block_G)
    else:
        tl.store(exp_avg + index_GB, m_GB, mask=inside_GB)
        tl.store(exp_avg_sq + index_GB, v_GB, mask=inside_GB)
    tl.store(out + index_GB, result_GB, mask=inside_GB)


def direction(grad: Tensor, moments: tuple[Codes, Codes] | tuple[Tensor, Tensor], options: Options) -> Tensor:
    """Update both moments and return AdamW's direction.

    Args:
        grad: any shape and float dtype but float64. Not modified.
        moments: exp_avg and exp_avg_sq of as many elements, in codes or float32 and contiguous; written in place.
        options: of the step.
    Returns:
        New float32 tensor of the shape of `grad`.
    Raises:
        ShapeError: if gradient and moments do not belong to one parameter.
    Cost: in codes, reads 6 and writes 6 bytes an element for a float32 gradient.
    """
    out = torch.empty(grad.shape, dtype=torch.float32, device=grad.device)
    _step_(grad, moments, options, out, "direction")
    return out


def step_(grad: Tensor, moments: tuple[Codes, Codes] | tuple[Tensor, Tensor], options: Options, write: Write) -> None:
    """Update both moments and the weight.

    Args:
        grad: any shape and float dtype but float64. Not modified.
        moments: as for `direction`, of a whole parameter.
        options: of the step.
        write: the weight, written in place.
    Raises:
        ShapeError: if gradient, moments and weight do not belong to one parameter.
    Cost: in codes with a bfloat16 weight and gradient, reads 6 and writes 4 bytes an element.
    """
    _step_(grad, moments, options, write.weight, str(write.weight.dtype).removeprefix("torch."), write)
    mark_written(write.weight)


def _step_(
    grad: Tensor,
    moments: tuple[Codes, Codes] | tuple[Tensor, Tensor],
    options: Options,
    out: Tensor,
    writes: str,
    write: Write | None = None,
) -> None:
    beta1, beta2, eps, step, is_official = options
    correction1, correction2_sqrt = 1 - beta1**step, (1 - beta2**step) ** 0.5
    grad = grad.contiguous()
    check_launch("adamw", out.device, *_arguments(grad, moments, out))
    flat_grad, flat_out = grad.view(-1), out.view(-1)
    alpha, beta = (1.0, 1.0) if write is None else (write.alpha, write.beta)
    for start, stop in tiles(out.numel(), SPAN_ELEMENTS):
        keys = (0, 0) if write is None or writes != "bfloat16" else write.key_pair(start // SPAN_ELEMENTS)
        launch(
            adamw_kernel,
            triton.cdiv(stop - start, BLOCKS * BLOCK_SIZE),
            *(flat_grad[start:stop], flat_out[start:stop]),
            *(part for moment in moments for part in _parts(moment, start, stop)),
            *(stop - start, 1 - beta1, beta2, 1 - beta2),
            *(correction2_sqrt / correction1 if is_official else correction1, correction2_sqrt, eps),
            *(alpha, beta, *keys),
            IN_CODES=isinstance(moments[0], Codes),
            IS_OFFICIAL=is_official,
            WRITES=writes,
            G=BLOCKS,
            B=BLOCK_SIZE,
        )
    mark_written(*(part for moment in moments for part in (moment[:2] if isinstance(moment, Codes) else (moment,))))


def _arguments(grad: Tensor, moments: tuple[Codes, Codes] | tuple[Tensor, Tensor], out: Tensor) -> Iterator[Argument]:
    numel = out.numel()
    yield Argument("grad", grad, numel, None)
    yield Argument("out", out, numel, out.dtype if out.dtype in (torch.float32, torch.bfloat16) else torch.float32)
    names_and_moments: Iterator[tuple[str, Codes | Tensor]] = zip(("exp_avg", "exp_avg_sq"), moments, strict=True)
    for name, moment in names_and_moments:
        if isinstance(moment, Tensor):
            yield Argument(name, moment, numel, torch.float32)
            continue
        yield Argument(f"{name} codes", moment.codes, numel, torch.uint8)
        yield Argument(f"{name} block_scale", moment.block_scale, triton.cdiv(numel, BLOCK_SIZE), torch.float32)
        yield Argument(f"{name} values", moment.values, 256, torch.float32)
        yield Argument(f"{name} first_code", moment.first_code, 1 << 16, torch.uint8)
        yield Argument(f"{name} next_boundary", moment.next_boundary, 1 << 16, torch.float32)


def _parts(moment: Codes | Tensor, start: int, stop: int) -> tuple[Tensor, ...]:
    """Return the tensors of a span of a moment; those that a dense one lacks are stood in for by itself."""
    if isinstance(moment, Tensor):
        return (moment.view(-1)[start:stop],) * 5
    blocks = slice(start // BLOCK_SIZE, triton.cdiv(stop, BLOCK_SIZE))
    tables = (moment.values, moment.first_code, moment.next_boundary)
    return (moment.codes.view(-1)[start:stop], moment.block_scale.view(-1)[blocks], *tables)
