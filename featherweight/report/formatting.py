"""Numbers as people read them: bytes in binary units, thousands separators, equal decimals down a column."""

import math
from collections.abc import Iterable, Sequence

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


def format_column(values: Sequence[Cell]) -> list[str]:
    """Format the cells of a column.

    If one is no whole number, all share the decimals that keep three digits of each; but where they span more than
    three powers of ten (a loss above a count of tokens), each has four digits of its own.
    """
    decimals = None
    if is_numeric(values) and any(isinstance(value, float) for value in values):
        sizes = [abs(value) for value in values if isinstance(value, int | float) and math.isfinite(value) and value]
        if sizes and max(sizes) < 1e6:
            digits = [math.floor(math.log10(size)) for size in (max(sizes), min(sizes))]
            if digits[0] - digits[1] <= 2:
                decimals = max(0, 3 - digits[0], 2 - digits[1])
    return [_format_cell(value, decimals if decimals is not None and decimals <= 5 else None) for value in values]


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


def is_numeric(values: Sequence[Cell]) -> bool:
    """Return whether a column holds numbers alone, apart from empty cells."""
    filled = [value for value in values if value is not None]
    return bool(filled) and all(isinstance(value, int | float) and not isinstance(value, bool) for value in filled)


def finite_values(values: Iterable[Number]) -> list[Number]:
    """Return the values that are neither NaN nor infinite."""
    return [value for value in values if math.isfinite(value)]
