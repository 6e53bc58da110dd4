"""Sizes of memory as people write them."""

import re

from featherweight.errors import ConfigError

_UNITS = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
_UNITS |= {"kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}


def parse_bytes(size: str | int, *, where: str = "plan: budget") -> int:
    """Return a size in bytes.

    Args:
        size: a whole number of bytes, or text with a unit: KB, MB, GB, TB are powers of 1000; KiB, MiB, GiB, TiB (also
            K, M, G, T) of 1024; B is one. Text without a unit is refused: nobody who writes 12 means twelve bytes.
        where: what the size is for, for the message of an error.
    Raises:
        ConfigError: if it is no positive size.
    Example:
        >>> parse_bytes("12GB"), parse_bytes("1.5 GiB"), parse_bytes(4096)
        (12000000000, 1610612736, 4096)
    """
    found = re.fullmatch(r"\s*(\d[\d_]{0,30}(?:\.\d+)?)\s*([a-zA-Z]*)\s*", str(size))
    unit = found[2].lower() if found else ""
    if found and not unit and isinstance(size, str):
        raise ConfigError(
            f"{where}={size!r} has no unit; expected a size such as 12GB or 24GiB. Write {found[1]}GB if gigabytes are "
            "meant."
        )
    count = int(float(found[1].replace("_", "")) * _UNITS.get(unit or "b", 0)) if found else 0
    if count < 1:
        raise ConfigError(
            f"{where}={size!r} is no size; expected a positive number with a unit such as 12GB or 24GiB. Correct it."
        )
    return count
