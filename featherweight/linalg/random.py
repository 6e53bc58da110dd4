"""Seeded randomness for bases: generators keyed by several integers, and random orthonormal columns.

A generator is made where it is needed from (seed, parameter, step, ...), so nothing has to be saved to resume a run and
all processes draw the same numbers. Numbers are drawn on the CPU, so that every device sees the same ones.
Source: Steele et al., Fast splittable pseudorandom number generators, OOPSLA 2014 (the mixing function splitmix64).
"""

import torch
from torch import Tensor

from featherweight.errors import ConfigError
from featherweight.linalg.orthonormal import orthonormalize

_MASK = (1 << 64) - 1


def mix_keys(seed: int, *keys: int) -> int:
    """Return a well-mixed 64-bit number; a change of any bit of any key, or of their order, changes half of its bits.

    Args:
        seed: any integer; its lowest 64 bits count.
        keys: any integers; their lowest 64 bits count.
    """
    state = _splitmix64(seed)
    for key in keys:
        state = _splitmix64(state + key)
    return state


def keyed_generator(seed: int, *keys: int, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a generator that depends on all keys and nothing else.

    Args:
        seed: seed of the run.
        keys: what tells this draw from others: parameter index, step, purpose.
        device: the default gives the same numbers for tensors on every device. PyTorch's CPU generator uses only 32
            bits of a seed, so two of many thousand keys may share a stream.
    Example:
        >>> a, b = keyed_generator(0, 1, 2), keyed_generator(0, 1, 2)
        >>> bool((torch.rand(3, generator=a) == torch.rand(3, generator=b)).all())
        True
    """
    mixed = mix_keys(seed, *keys)
    # The CPU generator reads the low half only: fold the high half into it.
    return torch.Generator(device).manual_seed(mixed ^ (mixed >> 32))


def random_normal(shape: tuple[int, ...], *, generator: torch.Generator, like: Tensor) -> Tensor:
    """Draw standard normal numbers on the generator's device and return them with dtype and device of `like`."""
    drawn = torch.randn(shape, generator=generator, dtype=like.dtype, device=generator.device)
    return drawn.to(like.device)


def random_orthonormal(
    rows: int,
    rank: int,
    *,
    batch: tuple[int, ...] = (),
    generator: torch.Generator,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Return uniformly distributed orthonormal columns.

    Args:
        rows: M.
        rank: R, at most M.
        batch: leading dimensions; every matrix is drawn independently.
        generator: from `keyed_generator`.
        dtype: float32 or float64.
        device: of the result. Drawn where the generator is, made orthonormal here: devices agree to rounding.
    Returns:
        (*batch, M, R).
    Raises:
        ConfigError: unless 1 <= rank <= rows.
    Cost: 6*M*R*R FLOPs.
    """
    if not 1 <= rank <= rows:
        raise ConfigError(
            f"random_orthonormal: rank={rank} does not fit rows={rows}; expected 1 <= rank <= {rows}. Lower the rank."
        )
    like = torch.empty(0, dtype=dtype, device=device)
    return orthonormalize(random_normal((*batch, rows, rank), generator=generator, like=like))


def _splitmix64(value: int) -> int:
    value = (value + 0x9E3779B97F4A7C15) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)
