"""The step of a weight whose direction is normalised by rows or columns: a tile of rows at a time.

Nothing of the weight's size is made: a tile of the gradient, formed from its factors where it comes as such, is
normalised and written before the next one. Rows need one pass; columns need a first pass for their norms.
Shapes: M rows, N columns; a tensor of more axes is read as rows of its first axis, stacked matrices as rows of all.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from featherweight.linalg.outer_product import Gradient, OuterProduct
from featherweight.optim.policies.rules import ScaleRule, rules
from featherweight.optim.step.layout import Layout, Member, Stored, parts_of
from featherweight.optim.step.weight_update import (
    BLOCK_ELEMENTS,
    add_direction_,
    copy_back,
    rounding_of,
    slice_elements,
    weight_of,
    write_factors,
)
from featherweight.quant.int8_weight import Int8Weight


def steps_by_rows(layout: Layout) -> bool:
    """Say whether a parameter makes its step by `step_rows_`."""
    return isinstance(rules.get(layout.rule), ScaleRule)


def takes_factors(layout: Layout, group: Mapping[str, Any]) -> bool:
    """Say whether a step needs a gradient but once, a tile at a time, so that its factors are enough."""
    return steps_by_rows(layout) and len(layout.shape) == 2 and not layout.moments and group["normalize"] == "rows"


def step_rows_(layout: Layout, member: Member, grad: Gradient) -> str:
    """Update a weight; return words for what computed it.

    Args:
        layout: of the parameter, under the rule "scale".
        member: written in place, its momentum and step count too.
        grad: of the parameter's shape; factors of a matrix are multiplied out tile by tile.
    """
    state, group, rule = member.state, member.group, rules.get(layout.rule)
    assert isinstance(rule, ScaleRule)
    step = int(state["step"]) + 1
    state["step"].fill_(step)
    alpha, beta = write_factors(group)
    weight, rounding = weight_of(member.parameter), rounding_of(group, layout.index, step)
    rows, columns = _matrix_shape(layout.shape, bool(group.get("stacked", True)))
    if rows * columns == 0:
        return rule.words
    whole = Stored(layout, {name: parts_of(state, name) for name in layout.moments}, rounding, layout.first_moment)
    grad_MN = grad if isinstance(grad, OuterProduct) else grad.reshape(rows, columns)
    weight_MN = weight if isinstance(weight, Int8Weight) else weight.view(rows, columns)
    rms = None
    if group["normalize"] == "columns":
        squares = torch.zeros(columns, dtype=layout.dtype, device=grad_MN.device)
        for start, stop in _tiles(weight_MN):
            stored = whole.slice(start * columns, stop * columns)
            squares += _momentum(stored, _tile(grad_MN, start, stop, layout), group).square_().sum(0)
        rms = rule.rms(squares, rows)
    for start, stop in _tiles(weight_MN):
        stored = whole.slice(start * columns, stop * columns)
        values = _momentum(stored, _tile(grad_MN, start, stop, layout), group)
        if layout.moments:
            stored.write({"exp_avg": values})
        direction = values / (rule.rms(values.square().sum(1, keepdim=True), columns) if rms is None else rms)
        piece = weight_MN.rows(start, stop) if isinstance(weight_MN, Int8Weight) else weight_MN[start:stop]
        offset = layout.first_element + start * columns
        add_direction_(piece, direction, alpha=alpha, beta=beta, rounding=rounding, offset=offset)
    copy_back(member.parameter, weight)
    return rule.words


def _matrix_shape(shape: tuple[int, ...], stacked: bool) -> tuple[int, int]:
    rows = shape[0] * shape[1] if len(shape) == 3 and stacked else shape[0]
    return rows, math.prod(shape) // rows if rows else 0


def _tiles(weight_MN: Tensor | Int8Weight) -> Iterator[tuple[int, int]]:
    """Yield first and last row of tiles that begin where a block of quantised momentum does."""
    rows, columns = weight_MN.shape
    device = weight_MN.device if isinstance(weight_MN, Tensor) else weight_MN.codes.device
    multiple = BLOCK_ELEMENTS // math.gcd(columns, BLOCK_ELEMENTS)
    height = max(1, slice_elements(device) // columns // multiple) * multiple
    for start in range(0, rows, height):
        yield start, min(start + height, rows)


def _tile(grad_MN: Gradient, start: int, stop: int, layout: Layout) -> Tensor:
    """Return some rows of the gradient in the dtype of the arithmetic, as a tensor that may be the gradient's own."""
    rows = grad_MN.rows(start, stop).dense() if isinstance(grad_MN, OuterProduct) else grad_MN[start:stop]
    return rows.to(layout.dtype)


def _momentum(stored: Stored, tile: Tensor, group: Mapping[str, Any]) -> Tensor:
    """Return ``b m + (1 - b) g`` as a new tensor; nothing is stored yet. Without momentum ``g``, as a new tensor."""
    if not stored.layout.moments:
        return tile.clone()
    return torch.lerp(stored.read(tuple(tile.shape))["exp_avg"], tile, 1 - group["momentum"])
