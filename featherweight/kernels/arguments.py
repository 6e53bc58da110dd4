"""What a step of AdamW is given beside gradient and moments, whoever computes it."""

from typing import NamedTuple

from torch import Tensor

from featherweight.kernels import KeyPair


class Options(NamedTuple):
    """Numbers of one step."""

    beta1: float
    beta2: float
    eps: float
    step: int
    """From 1."""
    is_official: bool = False
    """galore-torch's place of eps."""


class Write(NamedTuple):
    """How a direction enters a weight: ``weight <- beta * weight + alpha * direction``."""

    weight: Tensor
    """float32, or bfloat16 for stochastic rounding; contiguous."""
    alpha: float
    beta: float
    key_pair: KeyPair
    """Keys of each span; not used by float32."""
