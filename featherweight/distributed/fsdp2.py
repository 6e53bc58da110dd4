"""Shares of rows: PyTorch's `fully_shard` (FSDP2), and what optimizers must know of it.

Every process holds some rows of every parameter, their moments and nothing else between two steps. FSDP2 gathers the
weights of a layer when it runs and sums its gradients to the rows; this module groups the layers, compares the
processes, and registers the shards with the optimizers (`featherweight.optim.sharding`).
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Shard

from featherweight.distributed.ddp import give_weights
from featherweight.distributed.reduce import Traffic
from featherweight.distributed.world import World
from featherweight.errors import ConfigError
from featherweight.optim.sharding import ParameterShard, register_shard, shard_of
from featherweight.quant.int8_weight import int8_weight_of


class MeshCollectives:
    """What optimizers ask of the processes of one mesh, through a group of its own. Building one is a collective.

    Args:
        mesh: one-dimensional.
    """

    def __init__(self, mesh: DeviceMesh) -> None:
        self.mesh = mesh
        self.group = dist.new_group(mesh.mesh.tolist())
        self.traffic = Traffic()
        """What optimizers have sent; FSDP2 counts nothing."""

    @property
    def world_size(self) -> int:
        """Number of processes."""
        return self.mesh.size()

    def sum_(self, tensor: Tensor) -> None:
        """See `Collectives.sum_`."""
        self.traffic.count("all_reduce", [tensor], tensor.nbytes)
        dist.all_reduce(tensor, group=self.group)

    def gather_rows(self, rows: Tensor, total: int) -> Tensor:
        """See `Collectives.gather_rows`."""
        chunk = -(-total // self.world_size)
        padded = rows.new_zeros(chunk, *rows.shape[1:])
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in range(self.world_size)]
        self.traffic.count("all_gather", [padded], padded.nbytes * self.world_size)
        dist.all_gather(parts, padded, group=self.group)
        return torch.cat(parts)[:total]

    def all_true(self, flags: Sequence[bool]) -> list[bool]:
        """See `Collectives.all_true`."""
        found = torch.tensor(flags, dtype=torch.int32, device=self.mesh.device_type)
        dist.all_reduce(found, op=dist.ReduceOp.MIN, group=self.group)
        return [bool(flag) for flag in found.tolist()]

    def distribute(self, rows: Tensor, total: int) -> Tensor:
        """See `Collectives.distribute`."""
        shape = torch.Size((total, *rows.shape[1:]))
        stride = torch.empty(shape, device="meta").stride()
        # Without shape and stride an uneven tensor is taken for an even one.
        return DTensor.from_local(rows, self.mesh, [Shard(0)], run_check=False, shape=shape, stride=stride)


def shard_fully(model: nn.Module, *, reduce_dtype: torch.dtype | None = None) -> None:
    """Shard a model by rows, one group for each of its layers; or take note of the shards that it has already.

    Args:
        model: of ordinary parameters, equal in shape on all processes; the weights of rank 0 count.
        reduce_dtype: what gradients are summed in; None for their own dtype.
    Raises:
        ConfigError: for int8 weights, models that differ between the processes, and shards of another kind.
    """
    parameters = list(model.parameters())
    if not any(isinstance(one, DTensor) for one in parameters):
        _refuse_int8(model)
        world = World()
        give_weights(world, model)
        mesh = init_device_mesh(parameters[0].device.type, (world.size,))
        policy = MixedPrecisionPolicy(reduce_dtype=reduce_dtype)
        for layer in repeated_layers(model):
            fully_shard(layer, mesh=mesh, mp_policy=policy)
        fully_shard(model, mesh=mesh, mp_policy=policy)
    register_shards(model)


def register_shards(model: nn.Module) -> None:
    """Tell optimizers which rows of a model's parameters this process holds; a collective.

    Raises:
        ConfigError: for parameters that are sharded in another way than by rows over one mesh.
    """
    made: dict[int, MeshCollectives] = {}
    for name, parameter in model.named_parameters():
        if not isinstance(parameter, DTensor):
            continue
        mesh, placements = parameter.device_mesh, parameter.placements
        if mesh.ndim != 1 or tuple(placements) != (Shard(0),):
            raise ConfigError(
                f"distributed.shard: '{name}' has placements {tuple(placements)} on a mesh of {mesh.ndim} dimensions; "
                "expected rows over one dimension, (Shard(0),). Use fully_shard with a one-dimensional mesh and "
                "without shard_placement_fn; tensor parallel and hybrid sharding are not supported yet."
            )
        if id(mesh) not in made:
            made[id(mesh)] = MeshCollectives(mesh)
        chunk, rank = math.ceil(parameter.shape[0] / mesh.size()), mesh.get_local_rank()
        start, stop = (min(end * chunk, parameter.shape[0]) for end in (rank, rank + 1))
        register_shard(parameter, ParameterShard(tuple(parameter.shape), start, stop, made[id(mesh)]))


def repeated_layers(model: nn.Module) -> Iterator[nn.Module]:
    """Yield the layers of a model that come several times, such as the decoder layers of a transformer.

    Example:
        >>> model = nn.ModuleDict({"embed": nn.Embedding(4, 2), "layers": nn.ModuleList(nn.Linear(2, 2) for _ in "ab")})
        >>> [type(layer).__name__ for layer in repeated_layers(model)]
        ['Linear', 'Linear']
    """
    inside: set[nn.Module] = set()
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and module not in inside and len({type(one) for one in module}) == 1:
            inside.update(one for layer in module for one in layer.modules())
            yield from module


def _refuse_int8(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if int8_weight_of(parameter) is not None:
            raise ConfigError(
                f"distributed.shard: '{name}' has an int8 weight, whose codes fsdp2 does not shard yet; expected float "
                'weights. Use kind="ddp", or leave fw.Int8() out.'
            )


def collectives_of(model: nn.Module) -> Any:
    """Return what a sharded model's optimizers send through, or None; for reports and tests."""
    shards = (shard_of(parameter) for parameter in model.parameters())
    return next((shard.collectives for shard in shards if shard is not None), None)
