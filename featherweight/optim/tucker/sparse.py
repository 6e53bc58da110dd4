"""Which entries of a tensor the sparse branch holds (TensorGRaD)."""

from math import gcd

import torch
from torch import Tensor

from featherweight.linalg.random import keyed_generator


def choose_entries(magnitude: Tensor, count: int, select: str, key: tuple[int, int, int, int]) -> Tensor:
    """Return ascending indices: the largest magnitudes, or drawn without repeats with probabilities proportional to
    them.

    Args:
        magnitude: (N,) non-negative.
        count: K.
        select: "topk" or "probability".
        key: of the random numbers.
    """
    if select == "probability":
        generator = keyed_generator(*key)
        waiting = torch.empty(magnitude.shape, dtype=torch.float32).exponential_(generator=generator)
        # The K smallest of exponential waiting times with these rates are such a draw (Efraimidis and Spirakis, 2006).
        magnitude = magnitude / waiting.to(magnitude.device)
    return magnitude.topk(count, sorted=False).indices.sort().values


def scattered_entries(numel: int, count: int, key: int) -> Tensor:
    """Return `count` different indices below `numel`, scattered by an affine permutation that follows from `key`.

    Nothing of length `numel` is made: index i is ``(a i + b) mod N`` with a and N coprime.
    """
    stride = key % max(1, numel - 1) + 1
    while gcd(stride, numel) != 1:
        stride += 1
    return (torch.arange(count) * stride + (key >> 32)) % numel
