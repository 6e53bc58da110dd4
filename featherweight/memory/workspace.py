"""Memory that matrix products take for themselves, which no tensor of a program shows.

Source: aten/src/ATen/cuda/CublasHandlePool.cpp of github.com/pytorch/pytorch (facts read, no code taken). For each
handle and stream it takes one workspace for cuBLAS and one for cuBLASLt from the caching allocator, so they belong to
the allocated and the reserved bytes. Releases differ: until 2025 only capability 9.0 got the large workspace, and later
sources give it back after each product unless TORCH_CUBLAS_WORKSPACE_CACHE is set. The model takes the larger figure.
"""

import re
from collections.abc import Mapping

from featherweight.errors import ConfigError

CUBLAS_BYTES = 2 * 4096 * 1024 + 8 * 16 * 1024
"""Workspace of cuBLAS below capability 9.0: the setting ``:4096:2:16:8``, two of 4096 KiB and eight of 16 KiB."""
CUBLAS_HOPPER_BYTES = 32 * 2**20
"""Workspace of cuBLAS from capability 9.0 on."""
CUBLASLT_BYTES = 2**20
"""Workspace of cuBLASLt, which serves linear layers with a bias, among others."""


def workspace_bytes(
    capability: tuple[int, int], *, streams: int = 1, environment: Mapping[str, str] | None = None
) -> int:
    """Return the bytes that matrix products keep for themselves.

    Args:
        capability: compute capability of the card, such as ``find_card("h100").capability``.
        streams: streams on which matrix products run.
        environment: settings CUBLAS_WORKSPACE_CONFIG (":KiB:count" pairs) and CUBLASLT_WORKSPACE_SIZE (KiB) of the
            process, such as ``os.environ``; None: the defaults.
    Raises:
        ConfigError: if a setting cannot be read, or `streams` is negative.
    Example:
        >>> workspace_bytes((8, 9)) - CUBLASLT_BYTES, workspace_bytes((9, 0)) // 2**20
        (8519680, 33)
    """
    if streams < 0:
        raise ConfigError(f"workspace_bytes: streams={streams} is negative; expected 0 or more. Count the streams.")
    environment = environment or {}
    default = CUBLAS_HOPPER_BYTES if capability >= (9, 0) else CUBLAS_BYTES
    return streams * (_cublas_bytes(environment, default) + _cublaslt_bytes(environment))


def _cublas_bytes(environment: Mapping[str, str], default: int) -> int:
    text = environment.get("CUBLAS_WORKSPACE_CONFIG")
    if text is None:
        return default
    if not re.fullmatch(r"(:\d+:\d+)+", text):
        raise ConfigError(
            f"workspace_bytes: CUBLAS_WORKSPACE_CONFIG={text} cannot be read; expected pairs of a size in KiB and a "
            "count. Write for example :4096:8."
        )
    return sum(int(size) * 1024 * int(count) for size, count in re.findall(r":(\d+):(\d+)", text))


def _cublaslt_bytes(environment: Mapping[str, str]) -> int:
    text = environment.get("CUBLASLT_WORKSPACE_SIZE")
    if text is None:
        return CUBLASLT_BYTES
    if not text.isdecimal():
        raise ConfigError(
            f"workspace_bytes: CUBLASLT_WORKSPACE_SIZE={text} cannot be read; expected a size in KiB. "
            "Write for example 1024."
        )
    return int(text) * 1024
