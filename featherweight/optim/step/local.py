"""The layout of a parameter of which this process holds some rows: planned by the whole shape, kept for the rows.

| side | core | moments of a process | traffic of a step | of a refresh |
|---|---|---|---|---|
| right | ``G_i Q``, its rows | its rows | 0 | the gradient of the matrix is gathered |
| left | ``sum P_i^T G_i``, its columns | its columns | R N summed by columns, R N gathered | the same |
| left, quantised | ``sum P_i^T G_i`` | all (R, N) | R N, summed | the same |
| none | the gradient's rows | its rows | 0 | - |
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from featherweight.errors import ConfigError
from featherweight.optim.policies.rules import rules
from featherweight.optim.sharding import ParameterShard
from featherweight.optim.step.layout import DenseLayout, MatrixLayout
from featherweight.quant.storage import DenseStorage


def local_dense(layout: DenseLayout, shard: ParameterShard) -> DenseLayout:
    """Return the layout of the rows of a parameter without a subspace.

    Raises:
        ConfigError: for a rule that is not elementwise, or quantised states with blocks across processes.
    """
    _require_elementwise(layout.name, layout.rule)
    _require_blocks(layout, shard, _elements_per_row(shard.full_shape))
    shapes = dict.fromkeys(layout.moment_shapes, shard.shape)
    return replace(layout, shape=shard.shape, moment_shapes=shapes, shard=shard)


def local_matrix(layout: MatrixLayout, shard: ParameterShard, group: Mapping[str, Any]) -> MatrixLayout:
    """Return the layout of the rows of a projected matrix.

    Raises:
        ConfigError: for what has no form on rows yet, by name of what to set instead.
    """
    problems = {
        "proj_type='full'": layout.side == "both",
        "proj_type='min_memory'": layout.alternative is not None,
        f"residual={type(layout.residual).__name__}": not layout.residual.is_plain,
        "basis_smoothing > 0": group["basis_smoothing"] > 0,
        "split or stacked matrices": layout.blocks is not None,
    }
    for words, is_so in problems.items():
        if is_so:
            raise ConfigError(
                f"optimizer: '{layout.name}' has {words}, which has no form on sharded rows yet; expected a one-sided "
                'basis and nothing outside of it. Use GaLoreAdamW with proj_type="right", or sharding ddp.'
            )
    _require_elementwise(layout.name, layout.rule)
    local = replace(layout, shape=shard.shape, rows=shard.stop - shard.start, shard=shard)
    if layout.side == "right":
        _require_blocks(layout, shard, layout.rank)
    elif all(isinstance(kept, DenseStorage) and kept.dtype is None for kept in layout.moments.values()):
        # Blocks of codes, and random bits of a rounding, run along whole rows of the core: those stay whole.
        local = replace(local, core_columns=shard.share(layout.columns))
    return replace(local, moment_shapes=dict.fromkeys(layout.moment_shapes, local.core_shape))


def _require_elementwise(name: str, rule: str) -> None:
    if not rules.get(rule).is_elementwise:
        raise ConfigError(
            f"optimizer: '{name}' has rule={rule!r}, which is not elementwise; expected one that is "
            "on sharded rows. Use AdamW or GaLoreAdamW, or sharding ddp."
        )


def _require_blocks(layout: DenseLayout | MatrixLayout, shard: ParameterShard, elements_per_row: int) -> None:
    for storage in layout.moments.values():
        if storage.granularity > 1:
            shard.require_whole_blocks(layout.name, elements_per_row, storage.granularity)


def _elements_per_row(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape[1:]:
        count *= size
    return count
