"""What several processes do in a run of a recipe: which sharding, equal models, shared gradients, checks, a report."""

import json
import math
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import nn
from torch.optim import Optimizer

from featherweight.distributed.comm_hook import average_gradients_
from featherweight.distributed.ddp import check_replicas
from featherweight.distributed.group import launched_processes
from featherweight.distributed.options import ShardingOptions
from featherweight.distributed.reduce import TorchReducer
from featherweight.distributed.sharding import shard
from featherweight.distributed.whole import is_sharded
from featherweight.distributed.world import World, common
from featherweight.errors import ConfigError
from featherweight.optim.low_rank import LowRankOptimizer
from featherweight.optim.reduce import attached_reducer
from featherweight.optim.sharding import local_of, shard_of
from featherweight.optim.step.check import norm_of
from featherweight.report import Report


class SharedRecipe(Protocol):
    """What of a recipe several processes must agree on."""

    sharding: ShardingOptions
    accumulation_steps: int

    def to_dict(self) -> dict[str, Any]:
        """Return all keys as plain values."""
        ...


def begin_sharding(world: World, recipe: SharedRecipe) -> None:
    """Refuse processes that cannot run a recipe together; a collective.

    Raises:
        ConfigError: if nobody has joined the processes to a group, the recipe is for one process, has too few
            micro-batches, or differs between them.
    """
    if world.size == 1:
        if (count := launched_processes()) > 1 and torch.distributed.is_available():
            _require_group(count)
        return
    world.require_same({"the recipe": json.dumps(recipe.to_dict(), sort_keys=True)})
    if recipe.sharding.kind == "none":
        raise common(
            ConfigError(
                f"recipe: sharding.kind=none, but {world.size} processes were started; expected ddp, or one process. "
                "Set sharding=ddp, or start without a launcher."
            )
        )
    if recipe.sharding.kind == "fsdp2":
        raise common(
            ConfigError(
                "recipe: sharding.kind=fsdp2 is not supported by recipes yet; expected ddp or auto. Set sharding=ddp, "
                'or use fw.distributed.shard(model, "fsdp2") in a loop of your own.'
            )
        )
    world.require_enough(recipe.accumulation_steps)


def _require_group(count: int) -> None:
    if not torch.distributed.is_initialized():
        raise ConfigError(
            f"training: WORLD_SIZE={count} processes were started and have no group, so each would train alone; "
            "expected a group. Call fw.distributed.start() first, or start without a launcher."
        )


def share_model(world: World, model: nn.Module, recipe: SharedRecipe) -> None:
    """Make the model that of all processes, as the recipe says; a collective."""
    if world.size > 1:
        dtype = torch.bfloat16 if recipe.sharding.reduce_dtype == "bfloat16" else None
        shard(model, "fsdp2" if recipe.sharding.kind == "fsdp2" else "ddp", reduce_dtype=dtype)


def share_gradients(world: World, model: nn.Module, optimizer: Optimizer, max_grad_norm: float | None) -> None:
    """Average the gradients of an ordinary step; those of layer-wise updates and of fsdp2 are averaged already.

    Args:
        world: of the run.
        model: that `share_model` has shared.
        optimizer: one of `fw.optim`.
        max_grad_norm: if it is set whole gradients travel, whose norm it limits; else cores where they are enough.
    """
    if world.size == 1 or (isinstance(optimizer, LowRankOptimizer) and optimizer.layerwise is not None):
        return
    reducer = attached_reducer(model)
    if reducer is not None:
        average_gradients_(optimizer, reducer, whole=max_grad_norm is not None)


def clip_rows_(world: World, parameters: Sequence[nn.Parameter], limit: float | None) -> float:
    """Scale the gradients of sharded parameters down to a norm over all processes, and return the norm that they had.

    Args:
        world: of the run.
        parameters: those with a gradient, sharded or not, the same on all processes.
        limit: largest norm; None only measures.
    """
    squares = [0.0, 0.0]  # of rows, which add up, and of what all hold alike
    grads = [local_of(one.grad) for one in parameters]
    for parameter, grad in zip(parameters, grads, strict=True):
        squares[0 if shard_of(parameter) is not None else 1] += float(norm_of(grad).double().square())
    norm = math.sqrt(world.sums(squares[0])[0] + squares[1])
    if limit is not None and math.isfinite(norm):
        factor = min(1.0, limit / (norm + 1e-6))  # as torch's clip_grads_with_norm_
        for grad in grads:
            grad.mul_(factor)
    return norm


def check_replicas_at(step: int, world: World, model: nn.Module, optimizer: Optimizer, every: int) -> None:
    """Compare the replicas after every so many steps; 0 never does."""
    if world.size > 1 and every and step % every == 0 and not is_sharded(model):
        check_replicas(model, optimizer, world=world)


def processes_report(world: World, model: nn.Module, bytes_by_category: dict[str, int], steps: int) -> Report | None:
    """Return who has run where, the bytes of each, and what was sent; None for one process. A collective.

    Args:
        world: of the run.
        model: that `share_model` has shared.
        bytes_by_category: of this process.
        steps: optimizer steps that this process has made.
    """
    if world.size == 1:
        return None
    reducer = attached_reducer(model)
    traffic = reducer.traffic if isinstance(reducer, TorchReducer) else None
    everyone = world.gather((str(world.device), bytes_by_category))
    report = Report("Processes")
    categories = list(bytes_by_category)
    rows = [[rank, device, *[found.get(name) for name in categories]] for rank, (device, found) in enumerate(everyone)]
    columns = ["rank", "device", *[f"{name.replace('_', ' ')} (bytes)" for name in categories]]
    report.add_table("Processes", columns, rows)
    if traffic is not None and steps:
        weights = sum(one.numel() * 4 for one in model.parameters() if one.requires_grad)
        facts = {
            "collectives of a step": round(traffic.calls / steps, 1),
            "sent by a rank in a step (bytes)": round(traffic.wire_bytes(world.size) / steps),
            "as whole float32 gradients (bytes)": round(2 * (world.size - 1) / world.size * weights),
        }
        report.add_facts(facts, title="Traffic")
    return report
