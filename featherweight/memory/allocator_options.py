"""Settings of PyTorch's CUDA caching allocator that change what a program takes from the driver.

The environment variable PYTORCH_CUDA_ALLOC_CONF holds them as text; `AllocatorOptions.from_text` reads it.
Source: c10/core/AllocatorConfig.cpp of github.com/pytorch/pytorch (facts read, no code taken).
"""

import re
import sys
from typing import Self

from pydantic import Field, field_validator

from featherweight.config import Config
from featherweight.errors import ConfigError, did_you_mean

MIB = 2**20
"""Bytes of one MiB."""
BLOCK_BYTES = 512
"""Every block is a multiple of this many bytes."""

# Divisions may be set for each power of two from 1 MiB on; the last of these intervals has no end.
_INTERVALS = 16

# Settings that cost or save time, or concern pinned host memory.
_WITHOUT_EFFECT = (
    "release_lock_on_cudamalloc",
    "pinned_use_cuda_host_register",
    "pinned_num_register_threads",
    "pinned_use_background_threads",
    "pinned_reserve_segment_size_mb",
    "graph_capture_record_stream_reuse",
)


class AllocatorOptions(Config):
    """Options of the allocator; the defaults are PyTorch's.

    Example:
        >>> AllocatorOptions.from_text("expandable_segments:True").expandable_segments
        True
        >>> AllocatorOptions(roundup_power2_divisions=4).round(1200 * 1024) // 1024
        1280
    """

    max_split_size_mb: int | None = Field(default=None, ge=20)
    """Blocks of this size in MiB or more are never split, so that large requests find them whole; None: no such size.
    At least 20."""
    max_non_split_rounding_mb: int = Field(default=20, ge=20)
    """MiB that an unsplit block may be larger than the request that it serves; with `max_split_size_mb`."""
    roundup_power2_divisions: int | tuple[int, ...] = 0
    """Sizes are rounded up to one of this many steps between two powers of two; 0 and 1: to 512 bytes. One number for
    all sizes, or 16 numbers, for sizes below 2 MiB, below 4 MiB, and so on to 32 GiB and above."""
    garbage_collection_threshold: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Cached segments go back to the driver while more than this share of the limit is reserved; 0: never. Without a
    limit it does nothing."""
    expandable_segments: bool = False
    """One segment per pool that grows by pages, instead of one segment per large request."""

    @field_validator("roundup_power2_divisions")
    @classmethod
    def _check_divisions(cls, divisions: int | tuple[int, ...]) -> int | tuple[int, ...]:
        if isinstance(divisions, tuple) and len(divisions) != _INTERVALS:
            raise ValueError(
                f"has {len(divisions)} numbers; expected one number or {_INTERVALS}. Give one for each power of two "
                "from 1 MiB on."
            )
        for one in divisions if isinstance(divisions, tuple) else (divisions,):
            if one < 0 or one & (one - 1):
                raise ValueError(f"holds {one}; expected 0 or a power of two. Choose 4, for example.")
        return divisions

    @property
    def split_limit_bytes(self) -> int:
        """Bytes from which on blocks are never split."""
        return sys.maxsize if self.max_split_size_mb is None else self.max_split_size_mb * MIB

    @property
    def unsplit_waste_bytes(self) -> int:
        """Bytes that an unsplit block may be larger than its request."""
        return self.max_non_split_rounding_mb * MIB

    def round(self, size_bytes: int) -> int:
        """Return the size of the block that a request of `size_bytes` (at least 1) asks for."""
        divisions = self._divisions(size_bytes)
        if divisions > 1 and size_bytes > BLOCK_BYTES * divisions:
            step = (1 << (size_bytes.bit_length() - 1)) // divisions
        else:
            step = BLOCK_BYTES
        return -(-size_bytes // step) * step

    def _divisions(self, size_bytes: int) -> int:
        divisions = self.roundup_power2_divisions
        if isinstance(divisions, int):
            return divisions
        return divisions[min(max(size_bytes.bit_length() - MIB.bit_length(), 0), _INTERVALS - 1)]

    @classmethod
    def from_text(cls, text: str, *, where: str = "AllocatorOptions") -> Self:
        """Read the text of PYTORCH_CUDA_ALLOC_CONF (or PYTORCH_ALLOC_CONF).

        Settings that change no sizes, such as those of pinned host memory, are passed over.

        Args:
            text: "key:value" pairs between commas; empty: the defaults.
            where: what to call the origin in messages.
        Raises:
            ConfigError: if a key is unknown, a value is not allowed, or the text asks for another allocator.
        Example:
            >>> AllocatorOptions.from_text("max_split_size_mb:128, garbage_collection_threshold:0.8").max_split_size_mb
            128
        """
        values: dict[str, object] = {}
        # Commas inside brackets belong to the value.
        for setting in re.split(r",(?![^\[]*\])", text.replace(" ", "")):
            key, _, value = setting.partition(":")
            if not setting or key in _WITHOUT_EFFECT:
                continue
            if key == "backend":
                _check_backend(value, where)
            elif key in cls.model_fields:
                values[key] = _value(key, value, where)
            else:
                raise ConfigError(
                    f"{where}: {key}={value} is not modelled; expected a setting of the allocator that changes sizes. "
                    f"{did_you_mean(key, cls.model_fields)}"
                )
        return cls.parse(values, where=where)


def _check_backend(value: str, where: str) -> None:
    if value != "native":
        raise ConfigError(
            f"{where}: backend={value} is another allocator; expected native, the one that is modelled. "
            "Remove the setting."
        )


def _value(key: str, text: str, where: str) -> object:
    try:
        if key == "expandable_segments":
            return {"true": True, "false": False}[text.lower()]
        if key == "garbage_collection_threshold":
            return float(text)
        return _intervals(text) if text.startswith("[") else int(text)
    except (KeyError, ValueError) as error:
        raise ConfigError(
            f"{where}: {key}={text} cannot be read; expected a value such as {_EXAMPLES[key]}. Correct the text."
        ) from error


_EXAMPLES = {
    "max_split_size_mb": "128",
    "max_non_split_rounding_mb": "20",
    "roundup_power2_divisions": "4 or [256:1,512:2,>:8]",
    "garbage_collection_threshold": "0.8",
    "expandable_segments": "True",
}


def _intervals(text: str) -> tuple[int, ...]:
    """Read "[256:1,512:2,>:8]": divisions by size in MiB, where the first holds below and ">" holds above."""
    divisions = [0] * _INTERVALS
    last = -1
    for entry in text.strip("[]").split(","):
        size_mb, _, value = entry.partition(":")
        if size_mb == ">":
            divisions[last + 1 :] = [int(value)] * (_INTERVALS - last - 1)
            continue
        index = min(int(size_mb).bit_length() - 1, _INTERVALS - 1)
        if last < 0:
            divisions[:index] = [int(value)] * index
        divisions[index] = int(value)
        last = index
    return tuple(divisions)
