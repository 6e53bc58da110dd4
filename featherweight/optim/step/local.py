"""The layout of a parameter of which this process holds some rows: planned by the whole shape, kept for the rows.

| side | core | moments of a process | traffic of a step | of a refresh |
|---|---|---|---|---|
| right | ``G_i Q``, its rows | its rows | 0 | the gradient of the matrix is gathered |
| left, columns of the weight | ``P^T G_i``, its columns | its columns | 0 | the same |
| left | ``sum P_i^T G_i``, its columns | its columns | R N summed by columns, R N gathered | the same |
| left, quantised | the same, its blocks | its blocks of codes | R N summed by blocks, R N gathered | moments, too |
| left, 16 bits, or blocks that do not divide | ``sum P_i^T G_i`` | all (R, N) | R N, summed | the same |
| none | the gradient's rows | its rows | 0 | - |

A basis lies whole on every process, or each keeps its share, which is gathered wherever a product needs it.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from featherweight.errors import ConfigError
from featherweight.optim.policies.rules import rules
from featherweight.optim.sharding import ParameterShard
from featherweight.optim.step.layout import DenseLayout
from featherweight.optim.step.matrix_layout import MatrixLayout
from featherweight.optim.step.spread import CoreShare
from featherweight.quant.storage import DenseStorage, DynamicStorage


def local_dense(layout: DenseLayout, shard: ParameterShard) -> DenseLayout:
    """Return the layout of the rows of a parameter without a subspace.

    Raises:
        ConfigError: for a rule that is not elementwise, columns, or quantised states with blocks across processes.
    """
    if shard.axis:
        raise _no_columns(layout, "has no basis")
    _require_elementwise(layout.name, layout.rule)
    _require_blocks(layout, shard, math.prod(shard.full_shape[1:]))
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
    is_dense = all(isinstance(kept, DenseStorage) and kept.dtype is None for kept in layout.moments.values())
    if shard.axis:
        if layout.side != "left" or not is_dense:
            raise _no_columns(layout, "has a right basis" if layout.side != "left" else "has moments below 32 bits")
        local = replace(layout, shape=shard.shape, columns=shard.stop - shard.start, shard=shard)
        local = replace(local, core_share=CoreShare(layout.core_shape, shard.start, shard.stop))
    else:
        local = replace(layout, shape=shard.shape, rows=shard.stop - shard.start, shard=shard)
        if layout.side == "right":
            _require_blocks(layout, shard, layout.rank)
        elif is_dense:
            local = replace(local, core_share=CoreShare(layout.core_shape, *shard.share(layout.columns)))
        else:
            local = _in_blocks(local, layout, shard)
    return replace(local, moment_shapes=dict.fromkeys(layout.moment_shapes, local.core_shape))


def _in_blocks(local: MatrixLayout, layout: MatrixLayout, shard: ParameterShard) -> MatrixLayout:
    """Return a layout whose quantised moments behind a left basis are shared by whole blocks, if that can be."""
    sizes = {kept.granularity for kept in layout.moments.values() if isinstance(kept, DynamicStorage)}
    count, processes = math.prod(layout.core_shape), shard.collectives.world_size
    if len(sizes) != 1 or not all(isinstance(kept, DynamicStorage) for kept in layout.moments.values()):
        return replace(local, whole_because="16 bits are rounded along whole rows of the core")
    (block,) = sizes
    if count % (block * processes):
        return replace(local, whole_because=f"{count} codes are no whole blocks of {block} on each of {processes}")
    return replace(local, core_share=CoreShare(layout.core_shape, *shard.share(count // block), block))


def _no_columns(layout: DenseLayout | MatrixLayout, problem: str) -> ConfigError:
    return ConfigError(
        f"optimizer: '{layout.name}' is shared by columns and {problem}; expected rows, or a left basis with moments "
        "of 32 bits. Use fully_shard without shard_placement_fn for it, or proj_type='left'."
    )


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
