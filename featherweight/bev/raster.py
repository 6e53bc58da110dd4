"""Filling polygons into grids of cells, in two ways: by what each cell's anchor lies in, or as published labels do.

Points are in cells, (column, row); see `BEVGridConfig.index`. Numpy alone: no OpenCV.
"""

from collections.abc import Sequence

import numpy as np

_FIXED = 1 << 16
"""Unit of the fixed-point coordinates of a convex fill."""


def fill_exact(shape: tuple[int, int], rings: Sequence[np.ndarray]) -> np.ndarray:
    """Return which cells have their anchor inside of a polygon: even-odd rule over all rings, so holes are holes.

    Args:
        shape: (rows, columns) of the grid.
        rings: (n, 2) float vertices (column, row), closed or not; exterior and holes in any order and direction.
    Returns:
        Bool (rows, columns). An anchor on an edge belongs to the polygon on its right or below, so that neighbouring
        polygons share no cell and leave none out. One pass over the crossings: O(rows crossed by the edges).
    """
    rows, columns = shape
    start = np.concatenate([ring for ring in rings])
    end = np.concatenate([np.roll(ring, -1, axis=0) for ring in rings])
    first = np.clip(np.ceil(np.minimum(start[:, 1], end[:, 1])), 0, rows).astype(np.int64)
    last = np.clip(np.ceil(np.maximum(start[:, 1], end[:, 1])), 0, rows).astype(np.int64)
    crossed = last - first
    edge = np.repeat(np.arange(len(start)), crossed)
    row = np.arange(len(edge)) - np.repeat(np.cumsum(crossed) - crossed, crossed) + first[edge]
    (x0, y0), (x1, y1) = start[edge].T, end[edge].T
    column = np.ceil(x0 + (row - y0) * (x1 - x0) / (y1 - y0))
    toggles = np.zeros((rows, columns + 1), np.uint8)
    np.bitwise_xor.at(toggles, (row, np.clip(column, 0, columns).astype(np.int64)), 1)
    return np.bitwise_xor.accumulate(toggles[:, :columns], axis=1).astype(bool)


def fill_convex(canvas: np.ndarray, ring: np.ndarray, value: int) -> None:
    """Write `value` where the fill for convex polygons of published labels paints: integer vertices, boundary included.

    It traces the outline and then fills, in each row, between two chains of edges. For polygons that are not convex it
    fills too much or too little; published labels do, and numbers that are to be compared with theirs need the same.

    Args:
        canvas: (rows, columns), changed in place.
        ring: (n, 2) integer vertices (column, row), in the order that they have.
        value: what is written.
    """
    ring = np.asarray(ring, dtype=np.int64)
    if len(ring) == 0:
        return
    for index in range(len(ring)):
        _draw_line(canvas, ring[index - 1], ring[index], value)
    rows, columns = canvas.shape
    (left, top), (right, bottom) = ring.min(axis=0), ring.max(axis=0)
    if len(ring) < 3 or right < 0 or bottom < 0 or left >= columns or top >= rows:
        return
    _fill_between_chains(canvas, [(int(x), int(y)) for x, y in ring], value)


def _fill_between_chains(canvas: np.ndarray, ring: list[tuple[int, int]], value: int) -> None:
    rows, columns = canvas.shape
    bottom = max(y for _, y in ring)
    row = min(y for _, y in ring)
    start = next(index for index, (_, y) in enumerate(ring) if y == row)
    # Of each chain: the vertex that it ends at, its direction, the row of that end, x and slope in fixed point.
    vertex, direction, end_row, x, slope = [start, start], (1, len(ring) - 1), [row, row], [-_FIXED, -_FIXED], [0, 0]
    left_to_visit = len(ring)
    for y in range(row, min(bottom, rows - 1) + 1):
        for chain in (0, 1):
            if y < end_row[chain]:
                continue
            at = vertex[chain]
            from_x, to_row = x[chain], end_row[chain]
            while True:
                left_to_visit -= 1
                if left_to_visit < 0:
                    return
                from_x = ring[at][0]
                at = (at + direction[chain]) % len(ring)
                to_row = ring[at][1]
                if to_row > y:
                    break
            height = to_row - y
            slope[chain] = _truncate(2 * _FIXED * (ring[at][0] - from_x) + height, 2 * height)
            x[chain], vertex[chain], end_row[chain] = _FIXED * from_x, at, to_row
        if y >= 0:
            first, last = (min(x) + _FIXED // 2) >> 16, (max(x) + _FIXED // 2) >> 16
            if last >= 0 and first < columns:
                canvas[y, max(first, 0) : min(last, columns - 1) + 1] = value
        x = [x[0] + slope[0], x[1] + slope[1]]


def _truncate(numerator: int, denominator: int) -> int:
    """Divide integers as C does, towards zero."""
    quotient = abs(numerator) // abs(denominator)
    return quotient if (numerator < 0) == (denominator < 0) else -quotient


def _draw_line(canvas: np.ndarray, start: np.ndarray, end: np.ndarray, value: int) -> None:
    """Draw the 8-connected line between two integer points, ends included, clipped to the canvas first."""
    clipped = _clip_line(int(start[0]), int(start[1]), int(end[0]), int(end[1]), canvas.shape)
    if clipped is None:
        return
    x0, y0, x1, y1 = clipped
    if x1 < x0:
        x0, y0, x1, y1 = x1, y1, x0, y0
    dx, dy, sign = x1 - x0, abs(y1 - y0), 1 if y1 >= y0 else -1
    # How often the minor axis has stepped before step k, in closed form: ceil((2 k minor - major) / (2 major)).
    major, minor = max(dx, dy), min(dx, dy)
    step = np.arange(major + 1)
    stepped = -((major - 2 * minor * step) // (2 * major)) if major else np.zeros(1, np.int64)
    along, across = (step, sign * stepped) if dx >= dy else (stepped, sign * step)
    canvas[y0 + across, x0 + along] = value


def _clip_line(x0: int, y0: int, x1: int, y1: int, shape: tuple[int, int]) -> tuple[int, int, int, int] | None:
    right, bottom = shape[1] - 1, shape[0] - 1

    def side(x: int) -> int:
        return (x < 0) + 2 * (x > right)

    def code(x: int, y: int) -> int:
        return side(x) + 4 * (y < 0) + 8 * (y > bottom)

    c0, c1 = code(x0, y0), code(x1, y1)
    if c0 & c1:
        return None
    if c0 & 12:
        border = 0 if c0 < 8 else bottom
        x0, y0 = x0 + _truncate((border - y0) * (x1 - x0), y1 - y0), border
        c0 = side(x0)
    if c1 & 12:
        border = 0 if c1 < 8 else bottom
        x1, y1 = x1 + _truncate((border - y1) * (x1 - x0), y1 - y0), border
        c1 = side(x1)
    if c0 & c1:
        return None
    if c0:
        border = 0 if c0 == 1 else right
        x0, y0 = border, y0 + _truncate((border - x0) * (y1 - y0), x1 - x0)
    if c1:
        border = 0 if c1 == 1 else right
        x1, y1 = border, y1 + _truncate((border - x1) * (y1 - y0), x1 - x0)
    return x0, y0, x1, y1
