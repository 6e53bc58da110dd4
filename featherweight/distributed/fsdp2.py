"""Shares of rows: PyTorch's `fully_shard` (FSDP2), and what optimizers must know of it.

Every process holds some rows of every parameter (columns, where a left basis wants these), their moments and nothing
else between two steps. FSDP2 gathers the weights of a layer when it runs and sums its gradients to the rows; this
module groups the layers, compares the processes, and registers the shards with the optimizers
(`featherweight.optim.sharding`).
"""

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn
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
from featherweight.quant.int8_weight import int8_weight_of

_AXES: dict[Any, int] = {Shard(0): 0, Shard(1): 1}


def shard_fully(
    model: nn.Module,
    *,
    reduce_dtype: torch.dtype | None = None,
    shard_size: int | None = None,
    reshard_after_forward: bool = True,
    columns: Collection[str] = (),
    basis: str = "replicated",
) -> None:
    """Shard a model by rows, one group for each of its layers; or take note of the shards that it has already.

    Args:
        model: of ordinary parameters, equal in shape on all processes; the weights of rank 0 count.
        reduce_dtype: what gradients are summed in; None for their own dtype.
        shard_size: processes that share one copy (hybrid sharding); None for all of them.
        reshard_after_forward: free the weights of a layer between its forward and its backward pass.
        columns: names of weights of which processes hold columns.
        basis: "replicated" or "sharded": whether optimizers keep bases whole, or a share on each process.
    Raises:
        ConfigError: for models that differ between the processes, shards of another kind, a `shard_size` that does not
            divide the processes, and columns that these do not divide.
    """
    parameters = list(model.parameters())
    _refuse_tensor_parallel(model)
    if not any(isinstance(one, DTensor) for one in parameters):
        world = World()
        mesh = _mesh(parameters[0].device.type, world.size, shard_size)
        placement = _placement_of(dict(model.named_parameters()), columns, mesh.size(-1))
        give_weights(world, model)
        before = dict(model.named_parameters(remove_duplicate=False))
        options: dict[str, Any] = {
            "mesh": mesh,
            "mp_policy": MixedPrecisionPolicy(reduce_dtype=reduce_dtype),
            "reshard_after_forward": reshard_after_forward,
            "ignored_params": set(store_codes_as_parameters(model)),
            "shard_placement_fn": placement,
        }
        for layer in repeated_layers(model):
            fully_shard(layer, **options)
        fully_shard(model, **options)
        for name, parameter in model.named_parameters(remove_duplicate=False):
            if name in before:
                register_unsharded(before[name], parameter)
    turns = Turns(is_late=parameters[0].device.type != "cpu")
    register_shards(model, turns, reduce_dtype=reduce_dtype, shares_bases=basis == "sharded")
    attach_reducer(model, TorchReducer(reduce_dtype=reduce_dtype, turns=turns))


def _placement_of(parameters: Mapping[str, Tensor], columns: Collection[str], count: int) -> Any:
    """Return what tells FSDP2 how each parameter is split; None for rows everywhere.

    Raises:
        ConfigError: for a name that no matrix has, and for columns that do not divide, which FSDP2 does not know.
    """
    for name in columns:
        found = parameters.get(name)
        is_matrix = found is not None and found.ndim == 2 and int8_weight_of(found) is None
        problem = "" if is_matrix else "is no float matrix of the model"
        if found is not None and not problem and found.shape[1] % count:
            problem = f"has {found.shape[1]} columns, which {count} processes do not divide"
        if problem:
            raise common(
                ConfigError(
                    f"distributed.shard: columns={name!r} {problem}; expected names of matrices whose columns divide. "
                    "Take those of fw.distributed.left_sided(optimizer), of an optimizer of the model as it is now."
                )
            )
    wanted = {id(parameters[name]) for name in columns}
    return (lambda parameter: Shard(1) if id(parameter) in wanted else Shard(0)) if wanted else None


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


def register_shards(
    model: nn.Module, turns: Turns, *, reduce_dtype: torch.dtype | None = None, shares_bases: bool = False
) -> None:
    """Tell optimizers which rows of a model's parameters this process holds; a collective.

    Args:
        model: after `fully_shard`.
        turns: where all processes compare what comes next.
        reduce_dtype: what cores below double precision are sent as.
        shares_bases: whether optimizers keep a share of each basis.
    Raises:
        ConfigError: for parameters that are sharded in another way than by rows or columns over one dimension of a
            mesh.
    """
    made: dict[Any, MeshCollectives] = {}  # one for all groups over the same processes
    for name, parameter in model.named_parameters():
        if not isinstance(parameter, DTensor):
            continue
        mesh, placements = parameter.device_mesh, tuple(parameter.placements)
        is_by_one = placements[-1] in _AXES and placements[:-1] in ((), (Replicate(),))
        if not is_by_one or parameter.ndim <= _AXES[placements[-1]]:
            raise common(
                ConfigError(
                    f"distributed.shard: '{name}' has placements {placements} on a mesh of {mesh.ndim} dimensions; "
                    "expected rows, or columns, over one dimension: (Shard(0),), (Shard(1),), or either behind "
                    "Replicate(). Tensor parallel is not supported."
                )
            )
        key = str((mesh.device_type, mesh.mesh.tolist()))
        if key not in made:
            made[key] = MeshCollectives(mesh, turns, reduce_dtype=reduce_dtype)
        axis = _AXES[placements[-1]]
        register_shard(parameter, made[key].shard(tuple(parameter.shape), axis, shares_bases=shares_bases))
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
