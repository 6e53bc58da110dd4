"""How many tokens are handled at once.

A chunk must be large enough that reading the weights once more does not show, and small enough that what is made on the
way fits a budget. The budget depends on the device alone, never on what happens to be free, so that the same run cuts
the same chunks every time and repeats bit for bit.
Source: arXiv 2407.15892, section 3.3 (the chunk as a trade of memory for weight traffic).
"""

from numbers import Integral
from typing import Literal

import torch

from featherweight.errors import ConfigError
from featherweight.simulated import device_kind, simulated_device

ChunkSize = int | Literal["auto"]
"""Tokens of one chunk, or "auto" for the rule of this module."""

_MIN_BUDGET_BYTES = 64 * 2**20
_MAX_BUDGET_BYTES = 2**30
_HEAD_FLOOR = 128
# A GPU needs about peak FLOPs / bandwidth = 300 tokens to hide the reading of the weights; the caches of a CPU prefer
# fewer.
_MLP_LIMITS = {"cpu": (256, 512), "accelerator": (1024, 2**16)}


def head_chunk_size(tokens: int, vocab_size: int, device: torch.device) -> int:
    """Return the chunk size of an output head: a power of two from 128 up whose logits fit the device's budget.

    Args:
        tokens: T, rows that the head sees.
        vocab_size: V. A token takes 6*V bytes: its logits in 16 and in 32 bits.
        device: where the tokens are. On a CPU the budget is 64 MiB, on an accelerator 1 % of its memory, between 64 MiB
            and 1 GiB.
    Example:
        >>> head_chunk_size(100_000, 32_000, torch.device("cpu"))
        256
    """
    return _clamp(budget_bytes(device) // (6 * vocab_size), _HEAD_FLOOR, tokens)


def mlp_chunk_size(tokens: int, width: int, device: torch.device) -> int:
    """Return the chunk size of a feed-forward layer; all tokens where chunks would save less than they cost.

    Args:
        tokens: T.
        width: F, features between the projections. A token takes 12*F bytes in the backward pass: six 16-bit tensors.
        device: where the tokens are; see `head_chunk_size`. Chunks have 256 to 512 tokens on a CPU, 1024 or more else.
    Returns:
        `tokens` if there are fewer than four chunks: the weight gradients that are summed up apart would be larger
        than what is saved.
    Example:
        >>> mlp_chunk_size(100_000, 14_336, torch.device("cpu")), mlp_chunk_size(1000, 14_336, torch.device("cpu"))
        (256, 1000)
    """
    low, high = _MLP_LIMITS["cpu" if device_kind(device) == "cpu" else "accelerator"]
    size = min(_clamp(budget_bytes(device) // (12 * width), low, tokens), high)
    return size if tokens >= 4 * size else tokens


def check_chunk_size(where: str, chunk_size: object) -> None:
    """Refuse what is neither "auto" nor a whole number of at least one token.

    Raises:
        ConfigError: for anything else.
    """
    is_count = isinstance(chunk_size, Integral) and not isinstance(chunk_size, bool) and int(chunk_size) >= 1
    if chunk_size != "auto" and not is_count:
        raise ConfigError(
            f"{where}: chunk_size={chunk_size!r} is no number of tokens; expected 'auto' or a whole number >= 1. "
            "Use 'auto' unless you have measured a better one."
        )


def budget_bytes(device: torch.device) -> int:
    """Return how many bytes one chunk may take on the way."""
    if device_kind(device) != "cuda":
        return _MIN_BUDGET_BYTES
    simulated = simulated_device()
    total_bytes = simulated.memory_bytes if simulated else torch.cuda.get_device_properties(device).total_memory
    return min(max(total_bytes // 100, _MIN_BUDGET_BYTES), _MAX_BUDGET_BYTES)


def _clamp(size: int, low: int, tokens: int) -> int:
    power = 1 << (max(size, 1).bit_length() - 1)
    return max(min(max(power, low), tokens), 1)
