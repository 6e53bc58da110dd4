"""Which step each parameter gets: dense, matrix, tensor or complex; and how a matrix is projected."""

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from featherweight.errors import ConfigError, ShapeError, did_you_mean
from featherweight.optim.policies.error_feedback import ErrorFeedback
from featherweight.optim.policies.full_periods import FullPeriods
from featherweight.optim.policies.refresh import SEEDED_METHODS, cheaper_side, choose_side
from featherweight.optim.policies.residual import ResidualPolicy, residual_policies
from featherweight.optim.policies.rules import rules
from featherweight.optim.sharding import shard_of
from featherweight.optim.step.dense import DenseStep
from featherweight.optim.step.layout import DenseLayout, Group, compute_dtype
from featherweight.optim.step.local import local_dense, local_matrix
from featherweight.optim.step.matrix import MatrixStep
from featherweight.optim.step.matrix_layout import MatrixLayout
from featherweight.optim.step.step import Step
from featherweight.optim.step.tensor import ComplexStep, TensorStep
from featherweight.optim.step.tensor_layout import TensorLayout, plan_pairs
from featherweight.optim.tucker.plan import projects_tensors
from featherweight.quant.storage import basis_storage_for

_DROPPED, _ERROR_FEEDBACK, _FULL_PERIODS = ResidualPolicy(), ErrorFeedback(), FullPeriods()


logger = logging.getLogger(__name__)

Placed = tuple[Step, tuple[int, int]]
"""A step, and the position of its first matrix among all projected ones and their number: `Member.position`."""


def plan_steps(where: str, groups: Sequence[Group], present: Mapping[Tensor, Step]) -> dict[Tensor, Step]:
    """Decide how the parameters of some groups are treated, beside those that are planned already.

    Args:
        where: name of the optimizer, for messages.
        groups: complete parameter groups.
        present: steps of the parameters before these.
    Raises:
        ConfigError, ShapeError: see `plan_step`; also for a key of `split` that no name matches.
    """
    steps: dict[Tensor, Step] = {}
    for group, parameter, name in named_parameters(groups):
        index = len(present) + len(steps)
        steps[parameter] = plan_step(name or f"parameter {index}", parameter, group, index)
    names = [step.layout.name for step in steps.values()]
    for key in {key for group in groups for key in group.get("split") or ()}:
        if all(split_of(name, {key: 2}) == 1 for name in names):
            raise ConfigError(
                f"{where}: split={key!r} matches no parameter; expected the begin or end of a component of a name, in "
                f"groups with named parameters. {did_you_mean(key, names[:20])}"
            )
    return steps


def placed(steps: Mapping[Tensor, Step]) -> dict[Tensor, Placed]:
    """Give each parameter the position of its first matrix among all projected ones, and their number."""
    total, first, found = sum(step.matrix_count for step in steps.values()), 0, {}
    for parameter, step in steps.items():
        found[parameter] = step, (first, total)
        first += step.matrix_count
    return found


def named_parameters(groups: Sequence[Group]) -> Iterator[tuple[Group, Tensor, str]]:
    """Yield (group, parameter, name) in the order of the groups; a name is "" where the groups have none."""
    for group in groups:
        names = group.get("param_names") or [""] * len(group["params"])
        for parameter, name in zip(group["params"], names, strict=True):
            yield group, parameter, name


@contextmanager
def plans_silently() -> Iterator[None]:
    """Plan an optimizer that is thrown away, and leave it to the one that is kept to say what it does not project."""
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def log_full_rank(where: str, groups: Sequence[Group], steps: Mapping[Tensor, Step]) -> None:
    """Say once which matrices of low-rank groups keep full-rank moments, because nothing would be saved."""
    wanted = [steps[p] for group in groups if group["low_rank"] for p in group["params"] if p.ndim >= 2]
    full = [step.layout for step in wanted if not step.matrix_count]
    if full:
        logger.warning(
            "%s: %d of %d matrices keep full-rank moments, because the rank is not below their smaller side "
            "(for example '%s' %s). Lower the rank to project them.",
            where,
            len(full),
            len(wanted),
            full[0].name,
            full[0].shape,
        )


def plan_step(name: str, parameter: Tensor, group: Mapping[str, Any], index: int) -> Step:
    """Decide how the optimizer treats a parameter.

    Args:
        name: full parameter name, for messages.
        parameter: any device, meta included.
        group: options of its parameter group.
        index: its position in the optimizer.
    Raises:
        ConfigError: for integer parameters, complex ones among projected matrices, and wrong options.
        ShapeError: if `split` does not divide the rows.
    """
    pairs = plan_pairs(name, parameter, group, index)
    if pairs is not None:
        return TensorStep(pairs) if isinstance(pairs, TensorLayout) else ComplexStep(pairs)
    if projects_tensors(group):  # its vectors, matrices and small tensors keep full-rank moments
        group = {**group, "low_rank": False}
    if not parameter.is_floating_point():
        raise ConfigError(
            f"optimizer: '{name}' has dtype={parameter.dtype}; expected a floating-point parameter. "
            "Leave it out of the parameter groups or freeze it."
        )
    dtype = compute_dtype(parameter.dtype)
    matrix = plan_matrix(name, parameter, group, index, dtype)
    shard = shard_of(parameter)
    if matrix is not None:
        return MatrixStep(matrix if shard is None else local_matrix(matrix, shard, group))
    shape, inner = tuple(parameter.shape), rules.get(group["rule"])
    rule = (inner.vector_rule if len(shape) < 2 else None) or inner.full_rank_rule
    dense = DenseLayout(name=name, index=index, shape=shape, dtype=dtype, rule=rule)
    dense = dense.with_moments(shape, group)
    return DenseStep(dense if shard is None else local_dense(dense, shard))


def plan_matrix(
    name: str, parameter: Tensor, group: Mapping[str, Any], index: int, dtype: torch.dtype
) -> MatrixLayout | None:
    """Decide how a parameter is projected; None if nothing would be saved.

    A parameter keeps full-rank moments if its group is not low-rank, if it is empty or has fewer than two dimensions,
    or if the rank would save nothing (R >= min(M, N)). Arguments are those of `plan_step`, and the dtype of the
    arithmetic.
    """
    shape = tuple(parameter.shape)
    blocks, rows, columns = _matrices_of(name, shape, group)
    smaller = min(rows, columns)
    if not group["low_rank"] or not group["rank"] or len(shape) < 2 or parameter.numel() == 0:
        return None
    rank = resolve_rank(group["rank"], smaller)
    if rank >= smaller:
        return None
    side = choose_side(rows, columns, group["proj_type"])
    seeded = group["basis_method"] if group["basis_method"] in SEEDED_METHODS else None
    half = parameter.dtype in (torch.bfloat16, torch.float16)
    basis_bits = group["basis_bits"] or (16 if half else 32)
    layout = MatrixLayout(
        name=name,
        index=index,
        shape=shape,
        dtype=dtype,
        rank=rank,
        side=side,
        blocks=blocks,
        rows=rows,
        columns=columns,
        rule=group["rule"],
        basis=None if seeded else basis_storage_for(basis_bits, group["basis_renorm"]),
        seeded_basis=seeded,
        residual=residual_policy(group),
        product_dtype=torch.bfloat16 if parameter.dtype == torch.bfloat16 and basis_bits <= 16 else dtype,
        queue_size=group["lazy"]["queue_size"] if group["lazy"] else 0,
    ).on_side(side, group)
    if group["proj_type"] == "min_memory" and blocks is None and seeded is None:
        left, right = (layout.on_side(s, group).nbytes() for s in ("left", "right"))
        layout = replace(layout, alternative=cheaper_side(side, left, right))
    return layout


def residual_policy(group: Mapping[str, Any]) -> ResidualPolicy:
    """Return what the options of a parameter group choose for what lies outside of the subspace; one at most."""
    if group["error_feedback"]:
        return _ERROR_FEEDBACK
    if group["full_rank_probability"] > 0:
        return _FULL_PERIODS
    return _DROPPED if group["residual"] is None else residual_policies.get(group["residual"])


def resolve_rank(rank: int | float, smaller: int) -> int:
    """Turn a rank that may be a fraction of min(M, N) into a number of columns.

    Example:
        >>> resolve_rank(0.25, 512), resolve_rank(128, 512)
        (128, 128)
    """
    return max(1, round(rank * smaller)) if isinstance(rank, float) else rank


def _matrices_of(name: str, shape: tuple[int, ...], group: Mapping[str, Any]) -> tuple[int | None, int, int]:
    """Return (blocks, M, N): stacked experts and fused projections give several matrices, convolutions one.

    A fused projection of stacked experts is split inside each expert.
    """
    if len(shape) < 2:
        return None, 1, math.prod(shape)
    stack = shape[0] if len(shape) == 3 and group.get("stacked", True) else None
    rows, columns = (shape[0], math.prod(shape[1:])) if stack is None else shape[1:]
    split = split_of(name, group.get("split"))
    if split == 1:
        return stack, rows, columns
    if rows % split:
        raise ShapeError(
            f"param group: split={split} does not divide the {rows} rows of '{name}' {shape}; "
            "expected a divisor. Project it whole by leaving it out of split."
        )
    return (1 if stack is None else stack) * split, rows // split, columns


def split_of(name: str, split: Mapping[str, int] | None) -> int:
    """Return in how many row blocks a parameter is split; a key of `split` begins or ends a component of the name.

    Example:
        >>> split_of("layers.0.attn.qkv_proj.weight", {"qkv": 3}), split_of("layers.0.mlp.weight", {"qkv": 3})
        (3, 1)
    """
    for key, count in (split or {}).items():
        if any(component.startswith(key) or component.endswith(key) for component in name.split(".")):
            return count
    return 1
