"""Numbers as people read them: bytes in binary units, thousands separators, equal decimals down a column."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence

Number = int | float
Cell = str | int | float | bool | None


def format_bytes(count: float) -> str:
    """Write a number of bytes in the largest binary unit that keeps it at or above one.

    Args:
        count: bytes; may be negative, NaN or infinite.

    Example:
        >>> format_bytes(1320702443), format_bytes(512), format_bytes(-2048)
        ('1.23 GiB', '512 B', '-2.00 KiB')
    """
    if not math.isfinite(count):
        return f"{count} B"
    for exponent, unit in ((4, "TiB"), (3, "GiB"), (2, "MiB"), (1, "KiB")):
        # Compare what the next smaller unit would print: 1048575 bytes are 1.00 MiB and not 1024.00 KiB.
        if round(abs(count) / 1024 ** (exponent - 1), 2 if exponent > 1 else None) >= 1024:
            return f"{count / 1024**exponent:.2f} {unit}"
    return f"{count:.0f} B"


def format_number(value: float) -> str:
    """Write a number with thousands separators and, unless it is whole, four significant digits.

    Example:
        >>> format_number(134515008), format_number(3.14159), format_number(1e-5), format_number(float("nan"))
        ('134,515,008', '3.142', '1e-05', 'nan')
    """
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e9 else f"{value:.4g}"


def format_column(values: Sequence[Cell], name: str = "") -> list[str]:
    """Format the cells of a column.

    If one is no whole number, all share the decimals that keep three digits of each, or one digit where they span more
    than three powers of ten. A column of unlike things (a loss above a count of tokens) gives each four digits of its
    own. Shares of one (see `is_share`) are percentages.

    Args:
        values: the cells.
        name: of the column.
    Example:
        >>> format_column([2.4412, 11.5]), format_column([0.5, 0.125], "accuracy")
        (['2.44', '11.50'], ['50.0 %', '12.5 %'])
    """
    if is_share(name, values):
        decimals = 2 if any(0 < abs(value) < 0.001 for value in values if isinstance(value, float)) else 1
        return ["-" if value is None else format_share(float(value), decimals) for value in values]
    shared = None
    if is_numeric(values) and any(isinstance(value, float) for value in values):
        sizes = [abs(value) for value in values if isinstance(value, int | float) and math.isfinite(value) and value]
        if sizes and max(sizes) < 1e6:
            digits = [math.floor(math.log10(size)) for size in (max(sizes), min(sizes))]
            if digits[0] - digits[1] <= 2:
                shared = max(0, 3 - digits[0], 2 - digits[1])
            elif all(isinstance(value, float) for value in values if value is not None):
                shared = max(0, 3 - digits[0], -digits[1])
            shared = shared if shared is not None and shared <= 5 else None
    return [_format_cell(value, shared) for value in values]


_SHARES = ("accuracy", "chance", "rank reduction", "parameters kept", "bytes kept")
"""Names of what is a share of one wherever it is reported."""


def is_share(name: str, values: Sequence[Cell] = ()) -> bool:
    """Return whether a column, a fact or an axis holds shares of one, which people read as percentages.

    Args:
        name: of the quantity, with or without its unit; "share of ..." says it, too.
        values: if one of them is text or no share, the answer is no.
    """
    if not (name.endswith(_SHARES) or "share of" in name):
        return False
    numbers = [value for value in values if value is not None]
    return all(isinstance(value, int | float) and not value > 1 and not value < -1 for value in numbers)


def format_share(value: float, decimals: int = 1) -> str:
    """Write a share of one as a percentage.

    Example:
        >>> format_share(0.8754), format_share(0.05, 0)
        ('87.5 %', '5 %')
    """
    return f"{100 * value:.{decimals}f} %" if math.isfinite(value) else str(value)


def _format_cell(value: Cell, decimals: int | None = None) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return value
    if math.isfinite(value) and decimals is not None:
        return f"{value:,.{decimals}f}"
    return format_number(value)


def format_value(name: str, value: Cell) -> str:
    """Write one value under its name: a share as a percentage, a number in digits of its own.

    Example:
        >>> format_value("accuracy", 0.875), format_value("loss", 2.44123)
        ('87.5 %', '2.441')
    """
    return format_column([value], name)[0] if is_share(name, [value]) else _format_cell(value)


def format_facts(facts: Mapping[str, Cell]) -> list[str]:
    """Format the values of facts, each in digits of its own."""
    return [format_value(name, value) for name, value in facts.items()]


def is_numeric(values: Sequence[Cell]) -> bool:
    """Return whether a column holds numbers alone, apart from empty cells."""
    filled = [value for value in values if value is not None]
    return bool(filled) and all(isinstance(value, int | float) and not isinstance(value, bool) for value in filled)


def stands_right(values: Sequence[Cell]) -> bool:
    """Return whether the cells of a column line up at their right: numbers, also "513 / 513" and "87.5 %"."""
    filled = [value for value in values if value is not None]
    return is_numeric(values) or (
        bool(filled) and all(isinstance(value, str) and re.fullmatch(r"[-−\d., /%]+", value) for value in filled)
    )


def finite_values(values: Iterable[Number]) -> list[Number]:
    """Return the values that are neither NaN nor infinite."""
    return [value for value in values if math.isfinite(value)]
