"""Quantisation: blockwise codes, stochastic rounding, and how an optimizer state is stored."""

from featherweight.quant.rounding import hash_bits, stochastic_round_
from featherweight.quant.storage import (
    DenseStorage,
    DynamicStorage,
    StateStorage,
    UniformStorage,
    basis_storage_for,
    storage_for,
)

__all__ = [
    "DenseStorage",
    "DynamicStorage",
    "StateStorage",
    "UniformStorage",
    "basis_storage_for",
    "hash_bits",
    "stochastic_round_",
    "storage_for",
]
