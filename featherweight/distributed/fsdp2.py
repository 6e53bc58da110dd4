"""Shares of rows: PyTorch's `fully_shard` (FSDP2), and what optimizers must know of it.

Every process holds some rows of every parameter, their moments and nothing else between two steps. FSDP2 gathers the
weights of a layer when it runs and sums its gradients to the rows; this module groups the layers, compares the
processes, and registers the shards with the optimizers (`featherweight.optim.sharding`).
"""

import os
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard

from featherweight.distributed.ddp import give_weights
from featherweight.distributed.engine import WatchedGather, WatchedReduceScatter
from featherweight.distributed.int8_rows import register_int8_rows, store_codes_as_parameters
from featherweight.distributed.layer_groups import repeated_layers
from featherweight.distributed.mesh import MeshCollectives
from featherweight.distributed.reduce import TorchReducer
from featherweight.distributed.turns import Turns
from featherweight.distributed.world import World, common
from featherweight.errors import ConfigError
from featherweight.optim.reduce import attach_reducer
from featherweight.optim.sharding import register_shard, register_unsharded, shard_of


def shard_fully(
    model: nn.Module,
    *,
    reduce_dtype: torch.dtype | None = None,
    shard_size: int | None = None,
    reshard_after_forward: bool = True,
) -> None:
    """Shard a model by rows, one group for each of its layers; or take note of the shards that it has already.

    Args:
        model: of ordinary parameters, equal in shape on all processes; the weights of rank 0 count.
        reduce_dtype: what gradients are summed in; None for their own dtype.
        shard_size: processes that share one copy (hybrid sharding); None for all of them.
        reshard_after_forward: free the weights of a layer between its forward and its backward pass.
    Raises:
        ConfigError: for models that differ between the processes, shards of another kind, and a
            `shard_size` that does not divide the processes.
    """
    parameters = list(model.parameters())
    _refuse_tensor_parallel(model)
    if not any(isinstance(one, DTensor) for one in parameters):
        world = World()
        mesh = _mesh(parameters[0].device.type, world.size, shard_size)
        give_weights(world, model)
        before = dict(model.named_parameters(remove_duplicate=False))
        options: dict[str, Any] = {
            "mesh": mesh,
            "mp_policy": MixedPrecisionPolicy(reduce_dtype=reduce_dtype),
            "reshard_after_forward": reshard_after_forward,
            "ignored_params": set(store_codes_as_parameters(model)),
        }
        for layer in repeated_layers(model):
            fully_shard(layer, **options)
        fully_shard(model, **options)
        for name, parameter in model.named_parameters(remove_duplicate=False):
            if name in before:
                register_unsharded(before[name], parameter)
    turns = Turns(is_late=parameters[0].device.type != "cpu")
    register_shards(model, turns, reduce_dtype=reduce_dtype)
    attach_reducer(model, TorchReducer(reduce_dtype=reduce_dtype, turns=turns))


def _refuse_tensor_parallel(model: nn.Module) -> None:
    """Refuse DTensors that no `fully_shard` has made: those of tensor parallel may look like rows, too."""
    held = {parameter for group in model.modules() if isinstance(group, FSDPModule) for parameter in group.parameters()}
    for name, parameter in model.named_parameters():
        if isinstance(parameter, DTensor) and parameter not in held:
            raise common(
                ConfigError(
                    f"distributed.shard: '{name}' is a DTensor with placements {tuple(parameter.placements)} that "
                    "fully_shard has not made; expected ordinary parameters, or rows of fully_shard. Leave tensor "
                    "parallel (parallelize_module) out, which is not supported."
                )
            )


def _mesh(device_type: str, count: int, shard_size: int | None) -> DeviceMesh:
    """Return a mesh of all processes: (W,), or (copies, processes that share one)."""
    if shard_size is None or shard_size == count:
        return init_device_mesh(device_type, (count,))
    if shard_size < 1 or count % shard_size:
        raise ConfigError(
            f"distributed.shard: shard_size={shard_size} does not divide the {count} processes; expected a divisor. "
            "Set sharding.shard_size to the processes of one machine."
        )
    return init_device_mesh(device_type, (count // shard_size, shard_size), mesh_dim_names=("replicate", "shard"))


def node_size(count: int) -> int:
    """Return how many processes of all share a machine, as torchrun says; all of them if nobody does."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", count))


def register_shards(model: nn.Module, turns: Turns, *, reduce_dtype: torch.dtype | None = None) -> None:
    """Tell optimizers which rows of a model's parameters this process holds; a collective.

    Args:
        model: after `fully_shard`.
        turns: where all processes compare what comes next.
        reduce_dtype: what cores below double precision are sent as.
    Raises:
        ConfigError: for parameters that are sharded in another way than by rows over one dimension of a mesh.
    """
    made: dict[Any, MeshCollectives] = {}  # one for all groups over the same processes
    for name, parameter in model.named_parameters():
        if not isinstance(parameter, DTensor):
            continue
        mesh, placements = parameter.device_mesh, tuple(parameter.placements)
        if placements not in ((Shard(0),), (Replicate(), Shard(0))):
            raise common(
                ConfigError(
                    f"distributed.shard: '{name}' has placements {placements} on a mesh of {mesh.ndim} dimensions; "
                    "expected rows over one dimension, (Shard(0),) or (Replicate(), Shard(0)). Use fully_shard without "
                    "shard_placement_fn; tensor parallel is not supported."
                )
            )
        key = str((mesh.device_type, mesh.mesh.tolist()))
        if key not in made:
            made[key] = MeshCollectives(mesh, turns, reduce_dtype=reduce_dtype)
        register_shard(parameter, made[key].shard(tuple(parameter.shape)))
    register_int8_rows(model)
    for collectives in made.values():
        _watch_engine(model, collectives, turns)


def _watch_engine(model: nn.Module, collectives: MeshCollectives, turns: Turns) -> None:
    """Count and compare what FSDP2 sends, and learn which tensors layers compute with in place of their rows.

    These tensors stay the same objects over all steps; each group is gathered once to see them.
    """
    names = {parameter: name for name, parameter in model.named_parameters()}
    for place_name, group in model.named_modules():
        if not isinstance(group, FSDPModule):
            continue
        words = f"'{place_name}'" if place_name else "the model outside of its layers"
        traffic = collectives.engine_traffic
        gather, scatter = WatchedGather(words, traffic, turns), WatchedReduceScatter(words, traffic, turns)
        group.set_custom_all_gather(gather)  # type: ignore[arg-type]
        group.set_custom_reduce_scatter(scatter)  # type: ignore[arg-type]
        assert isinstance(group, nn.Module)
        rows = {(place, name): one for place in group.modules() for name, one in place._parameters.items()}
        group.unshard()
        for (place, name), parameter in rows.items():
            whole = place._parameters[name]
            if parameter is not None and whole is not None and whole is not parameter:
                register_unsharded(whole, parameter)
                if whole.requires_grad:
                    scatter.watch(whole, names[parameter])
        group.reshard()
    collectives.engine_traffic.forget()


def collectives_of(model: nn.Module) -> Any:
    """Return what a sharded model's optimizers send through, or None; for reports and tests."""
    shards = (shard_of(parameter) for parameter in model.parameters())
    return next((shard.collectives for shard in shards if shard is not None), None)
