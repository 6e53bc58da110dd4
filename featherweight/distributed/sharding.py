"""`shard`: the one call that makes a model that of several processes, and the objects that it refuses."""

from collections.abc import Collection
from typing import Any

import torch
from torch import nn

from featherweight.distributed import ddp
from featherweight.distributed.group import node_size, world_size
from featherweight.errors import ConfigError, did_you_mean
from featherweight.optim.sharding import refuse_flattened
from featherweight.unwrap import is_deepspeed, is_distributed

KINDS = ("ddp", "fsdp2", "hsdp")
BASES = ("replicated", "sharded")

_DEEPSPEED = "DeepSpeedEngine"
_WAYS_OUT = {
    "DistributedDataParallel": (
        "keeps all gradients in its buckets",
        "Give the bare model, or keep DistributedDataParallel with fw.distributed.core_hook(optimizer).",
    ),
    "DataParallel": ("splits batches over threads of one process", "Give the bare model and start with torchrun."),
    "FullyShardedDataParallel": (
        "flattens its shards, which then have no rows (FSDP 1)",
        'Give the bare model; fw.distributed.shard(model, "fsdp2") uses fully_shard (FSDP2).',
    ),
    _DEEPSPEED: (
        "flattens its shards, which then have no rows (ZeRO)",
        'Give the bare model; fw.distributed.shard(model, "fsdp2") does what ZeRO-3 does.',
    ),
}
"""Class of a wrapper -> what is wrong with it, and what to do."""


def shard(
    model: nn.Module,
    kind: str = "ddp",
    *,
    reduce_dtype: torch.dtype | None = None,
    shard_size: int | None = None,
    reshard_after_forward: bool = True,
    columns: Collection[str] = (),
    basis: str = "replicated",
) -> nn.Module:
    """Make a model that of all processes of the group, in place; a collective. Without a group it stays as it is.

    Call it after methods were applied and before the optimizer is built. `fw.optim.layerwise` finds what was done here.

    Args:
        model: the bare module, on the device of this process.
        kind: "ddp": every process holds all weights and state, and cores of gradients are averaged. "fsdp2": every
            process holds a share of the rows, through PyTorch's `fully_shard`. "hsdp": the same in several copies, so
            that little travels between machines.
        reduce_dtype: what float32 and narrower sums are sent as; None for their own dtype.
        shard_size: processes that share one copy under "hsdp"; None for those of one machine.
        reshard_after_forward: as in `fully_shard`: free a layer's weights between its forward and its backward pass.
        columns: names of weights of which each process holds columns in place of rows, under "fsdp2" and "hsdp": those
            that `left_sided` returns for an optimizer that was built before.
        basis: "replicated": every process has all bases; "sharded": a share of each, gathered where a product needs it.
    Returns:
        The same model.
    Raises:
        ConfigError: for a wrapped or sharded model, another kind, or models that differ between the processes.
        DeviceError: under "ddp" for accelerators of different models, whose products differ in the last digits.
    Cost: "ddp" sends every weight once.
    """
    if kind not in KINDS:
        raise ConfigError(
            f"distributed.shard: kind={kind!r} is unknown; expected one of {', '.join(KINDS)}. "
            f"{did_you_mean(str(kind), KINDS)}"
        )
    if basis not in BASES or (kind == "ddp" and (basis != "replicated" or columns)):
        raise ConfigError(
            f"distributed.shard: kind={kind!r} with basis={basis!r} and {len(columns)} weights by columns; expected "
            f"basis one of {', '.join(BASES)}, and under ddp, where every process has all, replicated and no columns. "
            'Use kind="fsdp2".'
        )
    _refuse_wrapped(model)
    if world_size() == 1:
        return model
    if kind != "ddp":
        from featherweight.distributed.fsdp2 import shard_fully

        together = (shard_size or node_size(world_size())) if kind == "hsdp" else None
        shard_fully(
            model,
            reduce_dtype=reduce_dtype,
            shard_size=together,
            reshard_after_forward=reshard_after_forward,
            columns=columns,
            basis=basis,
        )
    else:
        _refuse_shards(model)
        ddp.replicate(model, reduce_dtype=reduce_dtype)
    return model


def _refuse_wrapped(model: nn.Module) -> None:
    names = [one.__name__ for one in type(model).__mro__ if not one.__module__.startswith("featherweight.")]
    known = next((name for name in names if name in _WAYS_OUT), None)
    if known is None and is_deepspeed(model):
        known = _DEEPSPEED
    if known is not None:
        problem, way_out = _WAYS_OUT[known]
        raise ConfigError(
            f"distributed.shard: model={type(model).__name__} {problem}; expected an ordinary module. {way_out}"
        )
    for parameter in model.parameters():
        refuse_flattened(parameter)


def _refuse_shards(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if is_distributed(parameter):
            found: Any = parameter
            raise ConfigError(
                f"distributed.shard: kind=ddp, but '{name}' is a DTensor with placements {found.placements}; "
                'expected whole parameters. Use kind="fsdp2", or a model that nobody has sharded.'
            )
