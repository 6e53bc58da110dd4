"""Several processes: one group, shared models, checkpoints of any world size; on `torch.distributed` alone.

Started by torchrun, or by whatever sets RANK, WORLD_SIZE and MASTER_ADDR. In one process everything here is the
identity, so that one script serves both. See docs/distributed.md.
"""

from typing import Any

from featherweight.lazy_names import load_name

_PLACES = {
    "start": "featherweight.distributed.group",
    "stop": "featherweight.distributed.group",
    "rank": "featherweight.distributed.group",
    "world_size": "featherweight.distributed.group",
    "is_first": "featherweight.distributed.group",
    "World": "featherweight.distributed.world",
    "shard": "featherweight.distributed.sharding",
    "left_sided": "featherweight.distributed.placement",
    "check_replicas": "featherweight.distributed.ddp",
    "core_hook": "featherweight.distributed.comm_hook",
    "TorchReducer": "featherweight.distributed.reduce",
    "Traffic": "featherweight.distributed.reduce",
    "ShardingOptions": "featherweight.distributed.options",
    "save": "featherweight.distributed.checkpoint",
    "load": "featherweight.distributed.checkpoint",
}

__all__ = list(_PLACES)


def __getattr__(name: str) -> Any:
    return load_name(__name__, _PLACES, name)


def __dir__() -> list[str]:
    return sorted(__all__)
