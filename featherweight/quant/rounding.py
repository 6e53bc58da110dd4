"""Stochastic rounding from a counter-based generator: the random bits of an element depend on its index only.

A float32 value between two bf16 neighbours goes up with the probability of its distance from the lower one, so that the
mean of many small updates is right although each is below the spacing of bf16. The 16 random bits of element i are a
hash of (seed, key, step, i): any tiling, device and resumed run gives the same bits, and no generator state is saved.
Shapes: P = number of elements.
Source: Salmon et al., Parallel random numbers: as easy as 1, 2, 3, SC 2011 (counter-based generators); multipliers and
shifts of the hash are those of "lowbias32" (C. Wellons, 2018), here with a second key in the middle.
"""

import hashlib
import struct
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from featherweight import kernels
from featherweight.errors import ConfigError, ShapeError
from featherweight.kernels import native
from featherweight.simulated import device_kind, simulated_device
from featherweight.tiles import tiles

# Elements hashed at once. The buffers stay in the second-level cache of a CPU; a GPU wants few launches.
_TILE_ELEMENTS_CPU = 1 << 17
_TILE_ELEMENTS_GPU = 1 << 24
# Elements that share a key pair: counters stay far below 2**31, however large the tensor. A multiple of both tiles.
_KEYED_ELEMENTS = 1 << 24

_WORDS = 1  # tells whole words from the halves of `hash_bits`

_MAGNITUDE_MASK = 0x7FFFFFFF
_INFINITY = 0x7F800000
_LARGEST_FINITE = 0x7F7FFFFF
_QUIET_NAN = 0x00400000
_LARGEST_BF16 = 0x7F7F0000


@torch.no_grad()
def stochastic_round_(out: Tensor, values: Tensor, *, seed: int, key: int, step: int, offset: int = 0) -> Tensor:
    """Write `values` to a bf16 tensor, rounded up or down at random so that the expectation is the value.

    Values that bf16 holds exactly stay. NaN stays NaN, infinities stay. Finite values beyond the largest finite bf16
    number (3.39e38) become that number, never infinity: the only place where the expectation is off.

    Args:
        out: (P elements, any shape) bfloat16, any strides. Overwritten.
        values: same shape, float32. Not modified.
        seed: seed of the run.
        key: tells this tensor from others, for example the index of the parameter.
        step: optimizer step; every step draws new bits.
        offset: index of the first element, for a caller that works tile by tile in row-major order.
    Returns:
        `out`.
    Raises:
        ShapeError: if the shapes differ.
        ConfigError: if the types are not bfloat16 and float32.
    Cost: on one CPU thread about 0.3 ns per element by compiled C, 3 ns and temporaries of 16 bytes per element of a
            tile without.
    Source: unbiased rounding as in arXiv 2407.08296, section 3.2; there from a stateful generator.
    """
    if out.shape != values.shape:
        raise ShapeError(
            f"stochastic_round_: values={tuple(values.shape)} do not fit out={tuple(out.shape)}; expected equal "
            f"shapes. Pass the same tile of both."
        )
    if out.dtype != torch.bfloat16 or values.dtype != torch.float32:
        raise ConfigError(
            f"stochastic_round_: out={out.dtype}, values={values.dtype} have the wrong types; expected torch.bfloat16 "
            f"and torch.float32. Convert the values to float32."
        )
    if not out.is_contiguous():
        return out.copy_(
            stochastic_round_(
                torch.empty(out.shape, dtype=out.dtype, device=out.device),
                values,
                seed=seed,
                key=key,
                step=step,
                offset=offset,
            )
        )
    if native.runs_on(out) and native.runs_on(values):
        return native.stochastic_round_(out, values, offset=offset, key_pair=key_pairs(seed, key, step))
    if kernels.run_on(out):
        return kernels.rounding.stochastic_round_(out, values, offset=offset, key_pair=key_pairs(seed, key, step))
    source, target = values.reshape(-1).view(torch.int32), out.view(-1).view(torch.int16)
    for start, stop in _tiles(offset, source.numel(), source.device):
        bits = _tile_bits(seed, key, step, start, stop, source.device)
        tile = slice(start - offset, stop - offset)
        target[tile] = _upper_halves(source[tile], bits)
    return out


def _upper_halves(raw: Tensor, bits: Tensor) -> Tensor:
    """Return the upper halves of float32 patterns to whose lower halves `bits` were added; overwrites `bits`."""
    if _are_ordinary(raw):
        return bits.add_(raw).bitwise_right_shift_(16)
    magnitude = raw & _MAGNITUDE_MASK
    # Sums above the largest finite number are cut, then the maximum restores infinities and NaN.
    rounded = bits.add_(magnitude).clamp_(max=_LARGEST_FINITE)
    torch.maximum(rounded, magnitude, out=rounded)
    # A NaN whose payload lies in the lower half only would be cut to infinity: set its quiet bit.
    is_nan = magnitude.neg_().add_(_INFINITY).bitwise_right_shift_(31)
    rounded.bitwise_or_(is_nan.bitwise_and_(_QUIET_NAN))
    sign = torch.bitwise_and(raw, ~_MAGNITUDE_MASK, out=is_nan)
    return rounded.bitwise_or_(sign).bitwise_right_shift_(16)


def _are_ordinary(raw: Tensor) -> bool:
    """Say whether no sum can reach infinity. Asked where that does not wait for a device: it halves the work there."""
    if device_kind(raw.device) != "cpu":
        return False
    largest = (raw & _MAGNITUDE_MASK).amax()
    return simulated_device() is not None or int(largest) <= _LARGEST_BF16


def hash_bits(seed: int, key: int, step: int, offset: int, count: int, device: torch.device | str = "cpu") -> Tensor:
    """Return 16 random bits for each of the elements [offset, offset + count).

    Args:
        seed: seed of the run.
        key: tells this tensor from others.
        step: optimizer step.
        offset: index of the first element.
        count: number of elements.
        device: where to compute; the bits are the same everywhere.
    Returns:
        (count,) int32 in [0, 65535]: divided by 65536, a uniform number in [0, 1).
    Cost: about 1 ns per element on one CPU thread.
    """
    device = torch.device(device)
    bits = torch.empty(count, dtype=torch.int32, device=device)
    for start, stop in _tiles(offset, count, device):
        bits[start - offset : stop - offset] = _tile_bits(seed, key, step, start, stop, device)
    return bits


def uniform(seed: int, key: int, step: int, offset: int, count: int, device: torch.device | str = "cpu") -> Tensor:
    """Return a uniform random number for each of the elements [offset, offset + count).

    The numbers are those of the middles of 2**31 equal intervals, rounded to float32: never 0, and as fine near 0 as
    an update of a millionth of a code needs.

    Args:
        seed: seed of the run.
        key: tells this tensor from others.
        step: optimizer step.
        offset: index of the first element.
        count: number of elements.
        device: where to compute; the numbers are the same everywhere.
    Returns:
        (count,) float32 in [2**-32, 1].
    Cost: about 2 ns per element on one CPU thread.
    Example:
        >>> whole = uniform(0, 7, 1, 0, 10)
        >>> torch.equal(uniform(0, 7, 1, 6, 4), whole[6:])
        True
    """
    device = torch.device(device)
    numbers = torch.empty(count, dtype=torch.float32, device=device)
    for start, stop in _tiles(offset, count, device):
        span, first = divmod(start, _KEYED_ELEMENTS)
        words = torch.arange(first, first + stop - start, dtype=torch.int32, device=device)
        _hash_words_(words, *_key_pair(seed, key, step, span, _WORDS))
        numbers[start - offset : stop - offset] = words.bitwise_and_(_MAGNITUDE_MASK)
    return numbers.mul_(2.0**-31).add_(2.0**-32)


def _tiles(offset: int, count: int, device: torch.device) -> Iterator[tuple[int, int]]:
    """Return the tiles of [offset, offset + count), cut at multiples of the tile size."""
    return tiles(count, _TILE_ELEMENTS_CPU if device_kind(device) == "cpu" else _TILE_ELEMENTS_GPU, first=offset)


def _tile_bits(seed: int, key: int, step: int, start: int, stop: int, device: torch.device) -> Tensor:
    """Return the bits of elements [start, stop) of one key pair. Two elements share a word, the even one low."""
    span, first = divmod(start, _KEYED_ELEMENTS)
    last = first + stop - start
    words = torch.arange(first // 2, (last + 1) // 2, dtype=torch.int32, device=device)
    _hash_words_(words, *_key_pair(seed, key, step, span))
    halves = words.view(torch.int16)[first % 2 : first % 2 + stop - start]
    return halves.to(torch.int32).bitwise_and_(0xFFFF)


def key_pairs(seed: int, key: int, step: int, *, whole_words: bool = False) -> Callable[[int], tuple[int, int]]:
    """Return the function from the number of a span of 2**24 elements to its two keys of the hash.

    Args:
        seed: seed of the run.
        key: tells this tensor from others.
        step: optimizer step.
        whole_words: for `uniform`, which takes a word for each element, instead of `hash_bits`.
    """
    kind = (_WORDS,) if whole_words else ()
    return lambda span: _key_pair(seed, key, step, span, *kind)


def _key_pair(*keys: int) -> tuple[int, int]:
    """Return two well-mixed signed 32-bit numbers."""
    packed = struct.pack(f"<{len(keys)}Q", *(key & 0xFFFFFFFFFFFFFFFF for key in keys))
    first, second = struct.unpack("<2i", hashlib.blake2b(packed, digest_size=8).digest())
    return first, second


def _hash_words_(words: Tensor, first_key: int, second_key: int) -> None:
    """Hash int32 counters in place. Products wrap modulo 2**32."""
    shifted = torch.empty_like(words)

    def xor_shift_(bits: int) -> None:
        # int32 shifts copy the sign: mask it away, or the upper half would lose a bit.
        torch.bitwise_right_shift(words, bits, out=shifted)
        words.bitwise_xor_(shifted.bitwise_and_((1 << (32 - bits)) - 1))

    words.bitwise_xor_(first_key)
    xor_shift_(16)
    words.mul_(0x7FEB352D)
    xor_shift_(15)
    words.bitwise_xor_(second_key)
    words.mul_(_signed(0x846CA68B))
    xor_shift_(16)


def _signed(word: int) -> int:
    return word - (1 << 32) if word >= 1 << 31 else word
