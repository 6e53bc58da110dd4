"""Which step a parameter gets: dense, matrix, tensor or complex."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from featherweight.errors import ConfigError
from featherweight.optim.policies.rules import rules
from featherweight.optim.sharding import shard_of
from featherweight.optim.step.dense import DenseStep
from featherweight.optim.step.layout import DenseLayout, plan_matrix
from featherweight.optim.step.local import local_dense, local_matrix
from featherweight.optim.step.matrix import MatrixStep
from featherweight.optim.step.state_check import compute_dtype
from featherweight.optim.step.step import Step
from featherweight.optim.step.tensor import ComplexStep, TensorStep
from featherweight.optim.step.tensor_layout import TensorLayout, plan_pairs
from featherweight.optim.tucker.plan import projects_tensors


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
    shape, rule = tuple(parameter.shape), rules.get(group["rule"]).full_rank_rule
    dense = DenseLayout(name=name, index=index, shape=shape, dtype=dtype, rule=rule)
    dense = dense.with_moments(shape, group)
    return DenseStep(dense if shard is None else local_dense(dense, shard))
