"""Replicas: every process holds the whole model, and all stay equal bit by bit because all see equal means.

What travels is small: the weights once at the start, then sums of cores, and now and then a check that the replicas
are equal still.
"""

from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from featherweight.distributed.reduce import TorchReducer
from featherweight.distributed.world import World, common, device_name
from featherweight.errors import DeviceError, NumericsError
from featherweight.optim.reduce import attach_reducer
from featherweight.quant.int8_weight import int8_weight_of
from featherweight.unwrap import is_distributed

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def replicate(model: nn.Module, *, reduce_dtype: torch.dtype | None = None) -> TorchReducer:
    """Give all processes the weights of the first one, and the model its reducer.

    Raises:
        ConfigError: if the processes have built different models.
        DeviceError: if their accelerators are of different kinds.
    """
    world = World()
    _require_equal_devices(world, next(model.parameters()).device)
    give_weights(world, model)
    reducer = TorchReducer(reduce_dtype=reduce_dtype)
    attach_reducer(model, reducer)
    return reducer


def give_weights(world: World, model: nn.Module) -> None:
    """Give all processes the parameters and buffers of the first one.

    Raises:
        ConfigError: if they have built different models.
    """
    shapes = [f"{name} {tuple(tensor.shape)} {tensor.dtype}" for name, tensor in valued_tensors(model)]
    world.require_same({"the model": "\n".join(shapes)})
    for _, tensor in valued_tensors(model):
        dist.broadcast(_contiguous_view(tensor), src=0)


def valued_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, tensor) for all parameters and buffers; of an int8 weight its codes and scales, not its handle."""
    for name, parameter in model.named_parameters():
        if int8_weight_of(parameter) is None:
            yield name, parameter.detach()
    for name, buffer in model.named_buffers():
        yield name, buffer


def _contiguous_view(tensor: Tensor) -> Tensor:
    """Return the memory of a tensor as its backend takes it: real, and in the order in which it lies there."""
    real = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    if real.is_contiguous():
        return real
    strides = real.stride()
    order = sorted(range(real.ndim), key=lambda axis: -strides[axis])
    return real.permute(order)


def _require_equal_devices(world: World, device: torch.device) -> None:
    names = world.gather(device_name(device))
    other = next((number for number, one in enumerate(names) if one != names[0]), None)
    if other is not None:
        raise common(
            DeviceError(
                f"distributed.shard: rank 0 has {names[0]} and rank {other} {names[other]}; expected one kind of "
                'device under "ddp", as products differ in the last digits between kinds and replicas would part. Use '
                '"fsdp2", or machines of one kind.'
            )
        )


def check_replicas(model: nn.Module, optimizer: Optimizer | None = None, *, world: World | None = None) -> None:
    """Compare what all processes hold alike, bit by bit; a collective.

    Of a sharded model these are parameters that are not sharded, and of the optimizer's state bases, counters and what
    else is not spread over the processes.

    Args:
        model: parameters and buffers.
        optimizer: its state; None to leave it out.
        world: of the run; None makes one.
    Raises:
        NumericsError: names the first tensor that differs.
    Cost: reads everything once and sends 16 bytes for each tensor.
    """
    world = world or World()
    if world.size == 1:
        return
    tensors = list(valued_tensors(model))
    if any(is_distributed(one) for _, one in tensors):
        names = {name for name, _ in model.named_parameters()}
        tensors = [(name, one) for name, one in tensors if name in names and not is_distributed(one)]
    if optimizer is not None:
        layouts = getattr(optimizer, "layouts", {})
        parameters = [one for group in optimizer.param_groups for one in group["params"]]
        for index, parameter in enumerate(parameters):
            spread = layouts[parameter].spread if parameter in layouts else {}
            state = {key: value for key, value in optimizer.state.get(parameter, {}).items() if key not in spread}
            tensors += [
                (f"{key} of parameter {index}", value)
                for key, value in sorted(state.items())
                if torch.is_tensor(value) and not is_distributed(value)
            ]
    everyone = world.gather([(name, bit_sum(tensor)) for name, tensor in tensors])
    for rank, found in enumerate(everyone):
        for mine, theirs in zip(everyone[0], found, strict=False):
            if mine != theirs:
                raise common(
                    NumericsError(
                        f"distributed: '{mine[0]}' differs between rank 0 and rank {rank}; expected equal bits on all "
                        "ranks. Something outside of the optimizer has changed one of them: look for random numbers or "
                        "writes that depend on the rank, then resume from a checkpoint."
                    )
                )


def bit_sum(tensor: Tensor) -> int:
    """Return a number that follows from all bits of a tensor: their sum as integers, modulo 2^64.

    Example:
        >>> bit_sum(torch.tensor([1.0, 2.0])) == bit_sum(torch.tensor([1.0, 2.0]))
        True
        >>> bit_sum(torch.tensor([1.0, 2.0])) == bit_sum(torch.tensor([1.0, 2.0000002]))
        False
    """
    real = torch.view_as_real(tensor.detach()) if tensor.is_complex() else tensor.detach()
    if real.dtype == torch.bool:
        return int(real.sum())
    integers = real.contiguous().reshape(-1).view(_INTEGERS[real.element_size()])
    return int(integers.sum(dtype=torch.int64)) if integers.numel() else 0
