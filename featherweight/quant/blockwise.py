"""Blockwise quantisation: dynamic 8- and 4-bit codes for optimizer states, uniform 8- and 4-bit codes for bases.

A tensor is flattened and cut into blocks; each block has its own float32 scale. The last block may be shorter:
nothing is padded in what is stored. 4-bit codes lie two to a byte, the even element in the low half.
Non-finite input cannot be held by codes: it makes the scale of its block non-finite, so that the whole block reads as
NaN or infinite and the error stays visible. `require_finite` checks explicitly (and waits for the device).
Works tile by tile, so that temporaries stay small beside the tensor.
Shapes: P = numel, Q = ceil(P / block_size) blocks.
Source: Dettmers et al., 8-bit Optimizers via Block-wise Quantization, arXiv 2110.02861, section 2; Q-GaLore,
arXiv 2407.08296, section 3.1 for the uniform codes.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from featherweight.errors import ConfigError, NumericsError, ShapeError
from featherweight.simulated import device_kind
from featherweight.tiles import tiles

# Elements handled at once. On a CPU the buffers of a tile stay in the second-level cache; a GPU wants few launches.
_TILE_ELEMENTS_CPU = 1 << 16
_TILE_ELEMENTS_GPU = 1 << 22


@dataclass(frozen=True, eq=False)
class CodeTable:
    """The values that codes stand for, with what is needed to find the nearest one quickly.

    `values` is (2**bits,) float32, strictly increasing. `boundaries` is (2**bits - 1,) float32: a number x has code i
    if boundaries[i - 1] < x <= boundaries[i].

    The code is found from the upper half of the bits of x: `first_code` is the code at the lower end of the interval of
    all floats with this upper half, and `next_boundary` the only boundary inside (infinite if there is none). That is
    10 times faster than a binary search on a CPU.
    """

    bits: int
    values: Tensor
    boundaries: Tensor
    zero_code: int
    first_code: Tensor
    next_boundary: Tensor
    pairs: Tensor
    """(256,) int64, 4-bit tables only: the two float32 values of a packed byte, read as one integer."""

    def on(self, device: torch.device) -> "CodeTable":
        """Return this table on `device` (kept for later calls)."""
        return self if device.type == "cpu" else _table_on(self, device)


@lru_cache(maxsize=64)
def _table_on(table: CodeTable, device: torch.device) -> CodeTable:
    moved = {
        name: getattr(table, name).to(device)
        for name in ("values", "boundaries", "first_code", "next_boundary", "pairs")
    }
    return CodeTable(bits=table.bits, zero_code=table.zero_code, **moved)


def dynamic_values(bits: int, *, signed: bool) -> Tensor:
    """Return the values of the dynamic code: a decimal exponent with a linear fraction that gets finer with size.

    With e = 7 decades (8 bits) or 3 (4 bits): for i = 0..e-1 the midpoints of ``linspace(0.1, 1, f + 1)`` times
    10**(i - e + 1), with f = 2**i if signed, else 2**(i + 1); for a signed table also their negatives; 0 and 1.

    Differs for unsigned 4 bits: the smallest value is 0.001, the lower end of the lowest decade, instead of 0. Gaps are
    so wide there that many second moments would become 0, and Adam divides by their root (arXiv 2309.01507).

    Args:
        bits: 8 or 4.
        signed: whether negative values exist. First moments need them, second moments do not.
    Returns:
        (2**bits,) float64, strictly increasing. The signed table reaches from about -0.99 (-0.89 for 4 bits) to 1.
    Raises:
        ConfigError: for other widths.
    Source: arXiv 2110.02861, section 1.3 and appendix; 4 bits: our own reduction of the same construction.
    """
    require_bits("dynamic_values", bits)
    decades = 7 if bits == 8 else 3
    positive = []
    for i in range(decades):
        edges = torch.linspace(0.1, 1.0, (2**i if signed else 2 ** (i + 1)) + 1, dtype=torch.float64)
        positive.append((edges[:-1] + edges[1:]) / 2 * 10.0 ** (i - decades + 1))
    magnitudes = torch.cat(positive)
    smallest = 1e-3 if bits == 4 and not signed else 0.0
    parts = [magnitudes, torch.tensor([smallest, 1.0], dtype=torch.float64)]
    if signed:
        parts.append(-magnitudes)
    return torch.cat(parts).sort().values


@lru_cache(maxsize=16)
def dynamic_table(bits: int, *, signed: bool, positive_stays_positive: bool = False) -> CodeTable:
    """Return the dynamic code of `dynamic_values` as a table for `quantize_blockwise`.

    Args:
        bits: 8 or 4.
        signed: as in `dynamic_values`.
        positive_stays_positive: let a positive number never have the code of 0, although that may be the nearest one.
            Use it for second moments: a moment of 0 under a non-zero first moment makes Adam divide by eps alone.
    Raises:
        ConfigError: for other widths.
    """
    # The table is kept, so it holds numbers even where a simulation asks first.
    with _disable_current_modes():
        values = dynamic_values(bits, signed=signed).float()
        middle = (values[:-1].double() + values[1:].double()) / 2
        # Round boundaries down to float32: then x <= boundary exactly if x <= the true middle, so nearest is exact.
        rounded = middle.float()
        lower = torch.nextafter(rounded, torch.tensor(-torch.inf))
        boundaries = torch.where(rounded.double() > middle, lower, rounded)
        zero_code = int(values.abs().argmin())
        if positive_stays_positive and float(values[zero_code]) == 0.0:
            boundaries[zero_code] = 0.0
        first_code, next_boundary = _interval_lookup(boundaries)
        pairs = torch.empty(0, dtype=torch.int64)
        if bits == 4:
            byte = torch.arange(256)
            pairs = torch.stack([values[byte & 15], values[byte >> 4]], dim=1).view(torch.int64).flatten()
    return CodeTable(bits, values, boundaries, zero_code, first_code, next_boundary, pairs)


def _interval_lookup(boundaries: Tensor) -> tuple[Tensor, Tensor]:
    """Return, for each upper half of a float32, the code at the interval's lower end and the boundary inside."""
    upper = torch.arange(1 << 16, dtype=torch.int64)
    ends = torch.stack([upper << 16, (upper << 16) | 0xFFFF])
    ends = torch.where(ends >= 1 << 31, ends - (1 << 32), ends).to(torch.int32).view(torch.float32)
    ends = torch.where(ends.isfinite().all(dim=0), ends, 0.0)
    low, high = ends.amin(dim=0), ends.amax(dim=0)
    first, last = torch.bucketize(low, boundaries), torch.bucketize(high, boundaries)
    # Beyond [-1, 1] lies nothing that is quantised, so only there may an interval hold more than one boundary.
    assert bool(((last - first <= 1) | (high.abs() > 2)).all()), "two boundaries in one interval of the lookup"
    padded = torch.cat([boundaries, torch.tensor([torch.inf])])
    return first.to(torch.uint8), torch.where(last > first, padded[first], torch.inf)


def quantize_blockwise(
    values: Tensor, table: CodeTable, block_size: int, *, out: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """Quantise to the nearest table entry of ``value / (largest magnitude of the block)``.

    Args:
        values: (P elements, any shape) float. Not modified.
        table: from `dynamic_table`.
        block_size: elements per scale; even.
        out: (codes, block_scale) to write into instead of allocating.
    Returns:
        codes, (P,) uint8 for 8 bits or (ceil(P / 2),) for 4; block_scale, (Q,) float32. A block of zeros has scale 0.
    Raises:
        ConfigError: if block_size is odd or below 2.
    Cost: about 20 bytes of temporaries per element of a tile. 1 + 4 / block_size (or half a byte +) bytes are kept.
    Source: arXiv 2110.02861, section 2.1.
    """
    _require_block_size("quantize_blockwise", block_size)
    flat = values.detach().reshape(-1)
    codes, block_scale = out if out is not None else empty_codes(flat.numel(), table.bits, block_size, flat.device)
    table = table.on(flat.device)
    for start, stop in _tiles(flat, block_size):
        blocks_QB = _blocks(flat[start:stop], block_size)
        absmax_Q = blocks_QB.abs().amax(dim=1)  # vector_norm is 10 times slower here on a CPU
        block_scale[start // block_size : start // block_size + absmax_Q.numel()] = absmax_Q
        divisor_Q = absmax_Q + (absmax_Q == 0)
        normalized_QB = blocks_QB / divisor_Q[:, None]
        upper = normalized_QB.view(torch.int32).bitwise_right_shift(16).bitwise_and_(0xFFFF).flatten()
        tile_codes = table.first_code.index_select(0, upper)
        above = normalized_QB.flatten() > table.next_boundary.index_select(0, upper)
        _store(codes, tile_codes.add_(above.view(torch.uint8))[: stop - start], start, table.bits)
    return codes, block_scale


def dequantize_blockwise(
    codes: Tensor, block_scale: Tensor, table: CodeTable, block_size: int, shape: torch.Size | tuple[int, ...]
) -> Tensor:
    """Return the values of `codes`.

    Args:
        codes: from `quantize_blockwise`.
        block_scale: from `quantize_blockwise`.
        table: the same table.
        block_size: the same block size.
        shape: shape of the result; its product is P.
    Returns:
        `shape`, float32. An element differs from the quantised one by at most half the widest gap of the table times
        the block's scale; that holds too where a table ends before -1 or 0.
    Raises:
        ShapeError: if codes or block_scale do not have the lengths of P elements.
    """
    numel = _require_lengths("dequantize_blockwise", codes, block_scale, table.bits, block_size, shape)
    result = torch.empty(numel, dtype=torch.float32, device=codes.device)
    table = table.on(codes.device)
    for start, stop in _tiles(result, block_size):
        if table.bits == 8:
            tile = table.values.index_select(0, codes[start:stop].int())
        else:
            packed = codes[start // 2 : (stop + 1) // 2].int()
            tile = table.pairs.index_select(0, packed).view(torch.float32)[: stop - start]
        _scale_blocks_(tile, block_scale, start, block_size)
        result[start:stop] = tile
    return result.view(shape)


def quantize_uniform(
    values: Tensor, bits: int, block_size: int = 256, *, out: tuple[Tensor, Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Quantise each block to a uniform grid between its smallest and largest value, to nearest.

    The range is extended to include 0, so that the zero point is always a code: blocks of one sign keep their values,
    and 0 stays exactly 0. Differs from the official code of Q-GaLore, where such blocks saturate.

    Args:
        values: (P elements, any shape) float. Not modified.
        bits: 8 or 4.
        block_size: elements per scale; even.
        out: (codes, block_scale, zero_point) to write into instead of allocating.
    Returns:
        codes as in `quantize_blockwise`; block_scale (Q,) float32: the grid step; zero_point (Q,) uint8: the code of 0.
    Raises:
        ConfigError: for other widths, or if block_size is odd or below 2.
    Source: arXiv 2407.08296, section 3.1.
    """
    require_bits("quantize_uniform", bits)
    _require_block_size("quantize_uniform", block_size)
    flat = values.detach().reshape(-1)
    if out is None:
        codes, block_scale = empty_codes(flat.numel(), bits, block_size, flat.device)
        out = codes, block_scale, torch.empty(block_scale.shape, dtype=torch.uint8, device=flat.device)
    codes, block_scale, zero_point = out
    top = 2**bits - 1
    for start, stop in _tiles(flat, block_size):
        blocks_QB = _blocks(flat[start:stop], block_size)
        low_Q, high_Q = (
            end.clamp(**limit) for end, limit in zip(blocks_QB.aminmax(dim=1), ({"max": 0}, {"min": 0}), strict=True)
        )
        step_Q = high_Q / top - low_Q / top
        divisor_Q = step_Q + (step_Q == 0)
        zero_Q = (-low_Q / divisor_Q).round_().clamp_(0, top)
        tile_codes = (blocks_QB / divisor_Q[:, None]).round_().add_(zero_Q[:, None]).clamp_(0, top).to(torch.uint8)
        where = slice(start // block_size, start // block_size + step_Q.numel())
        block_scale[where], zero_point[where] = step_Q, zero_Q.to(torch.uint8)
        _store(codes, tile_codes.flatten()[: stop - start], start, bits)
    return out


def dequantize_uniform(
    codes: Tensor,
    block_scale: Tensor,
    zero_point: Tensor,
    bits: int,
    block_size: int,
    shape: torch.Size | tuple[int, ...],
) -> Tensor:
    """Return the values of uniform codes: ``(code - zero_point) * block_scale``.

    Returns:
        `shape`, float32. An element differs from the quantised one by at most half its block's step (and rounding).
    Raises:
        ShapeError: if codes, block_scale or zero_point do not have the lengths of P elements.
    """
    numel = _require_lengths("dequantize_uniform", codes, block_scale, bits, block_size, shape)
    result = torch.empty(numel, dtype=torch.float32, device=codes.device)
    for start, stop in _tiles(result, block_size):
        if bits == 8:
            tile = codes[start:stop].float()
        else:
            tile = unpack_int4(codes[start // 2 : (stop + 1) // 2], stop - start).float()
        _scale_blocks_(tile, block_scale, start, block_size, zero_point=zero_point)
        result[start:stop] = tile
    return result.view(shape)


def pack_int4(codes: Tensor) -> Tensor:
    """Pack codes below 16 two to a byte: even elements in the low half.

    Args:
        codes: (P,) uint8, each below 16.
    Returns:
        (ceil(P / 2),) uint8. The high half of the last byte of an odd P is 0.
    """
    packed = codes[0::2].clone()
    packed[: codes.numel() // 2] |= codes[1::2] << 4
    return packed


def unpack_int4(packed: Tensor, count: int) -> Tensor:
    """Return the first `count` codes of packed bytes.

    Args:
        packed: (ceil(count / 2),) uint8.
        count: number of codes, at most twice the number of bytes.
    Returns:
        (count,) uint8, each below 16.
    """
    return torch.stack([packed & 15, packed >> 4], dim=-1).view(-1)[:count]


def code_bytes(numel: int, bits: int) -> int:
    """Return how many bytes the codes of `numel` elements take."""
    return numel if bits == 8 else (numel + 1) // 2


def block_count(numel: int, block_size: int) -> int:
    """Return how many blocks `numel` elements fill, the last one perhaps partly."""
    return (numel + block_size - 1) // block_size


def empty_codes(numel: int, bits: int, block_size: int, device: torch.device | str) -> tuple[Tensor, Tensor]:
    """Allocate codes and block_scale for `numel` elements, not initialised."""
    codes = torch.empty(code_bytes(numel, bits), dtype=torch.uint8, device=device)
    return codes, torch.empty(block_count(numel, block_size), dtype=torch.float32, device=device)


def require_finite(values: Tensor, where: str) -> None:
    """Raise if any element is NaN or infinite. Waits for the device: not for every step.

    Args:
        values: any shape.
        where: the beginning of the message: who needs finite values.
    Raises:
        NumericsError: with the number of non-finite elements.
    """
    bad = int((~torch.isfinite(values)).sum())
    if bad:
        raise NumericsError(
            f"{where}: values={tuple(values.shape)} holds {bad} non-finite elements of {values.numel()}; expected "
            f"none. Skip this step or lower the learning rate."
        )


def require_bits(where: str, bits: int) -> None:
    """Raise ConfigError unless `bits` is a width with codes."""
    if bits not in (4, 8):
        raise ConfigError(f"{where}: bits={bits!r} has no code; expected 8 or 4. Use 32 or 16 bits without codes.")


def _require_block_size(where: str, block_size: int) -> None:
    if block_size < 2 or block_size % 2:
        raise ConfigError(
            f"{where}: block_size={block_size} cannot hold whole bytes of 4-bit codes; expected an even number >= 2. "
            f"Use 128 or 256."
        )


def _require_lengths(
    where: str, codes: Tensor, block_scale: Tensor, bits: int, block_size: int, shape: torch.Size | tuple[int, ...]
) -> int:
    numel = torch.Size(shape).numel()
    if codes.numel() != code_bytes(numel, bits) or block_scale.numel() != block_count(numel, block_size):
        raise ShapeError(
            f"{where}: codes={tuple(codes.shape)}, block_scale={tuple(block_scale.shape)} do not fit "
            f"shape={tuple(shape)}; expected {code_bytes(numel, bits)} bytes and {block_count(numel, block_size)} "
            f"scales. Pass the shape, width and block size that were quantised."
        )
    return numel


def _tiles(flat: Tensor, block_size: int) -> Iterator[tuple[int, int]]:
    elements = _TILE_ELEMENTS_CPU if device_kind(flat.device) == "cpu" else _TILE_ELEMENTS_GPU
    return tiles(flat.numel(), max(1, elements // block_size) * block_size)


def _blocks(tile: Tensor, block_size: int) -> Tensor:
    """Return a tile as (blocks, block_size) float32; zeros fill the end of the last block, which changes no scale."""
    tile = tile.float()
    missing = -tile.numel() % block_size
    if missing:
        tile = torch.nn.functional.pad(tile, (0, missing))
    return tile.view(-1, block_size)


def _store(codes: Tensor, tile_codes: Tensor, start: int, bits: int) -> None:
    if bits == 8:
        codes[start : start + tile_codes.numel()] = tile_codes
    else:
        packed = pack_int4(tile_codes)
        codes[start // 2 : start // 2 + packed.numel()] = packed


def _scale_blocks_(
    tile: Tensor, block_scale: Tensor, start: int, block_size: int, *, zero_point: Tensor | None = None
) -> None:
    """Turn table values (or codes) of a tile into numbers: whole blocks in one operation, the short last one apart."""
    first = start // block_size
    whole = tile.numel() // block_size
    parts = [(tile[: whole * block_size].view(whole, block_size), slice(first, first + whole))]
    if tile.numel() % block_size:
        parts.append((tile[whole * block_size :].view(1, -1), slice(first + whole, first + whole + 1)))
    for part, where in parts:
        if zero_point is not None:
            part.sub_(zero_point[where, None])
        part.mul_(block_scale[where, None])
