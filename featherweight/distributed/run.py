"""What several processes do in a run of a recipe: which sharding, equal models, shared gradients, checks, a report."""

import json
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol

import torch
from torch import nn
from torch.optim import Optimizer

import featherweight
from featherweight.distributed.comm_hook import average_gradients_
from featherweight.distributed.ddp import check_replicas
from featherweight.distributed.group import launched_processes, node_size
from featherweight.distributed.options import ShardingOptions
from featherweight.distributed.placement import columns_of_run
from featherweight.distributed.reduce import TorchReducer, Traffic
from featherweight.distributed.sharding import shard
from featherweight.distributed.whole import is_sharded
from featherweight.distributed.world import World, common
from featherweight.errors import ConfigError
from featherweight.optim.low_rank import LowRankOptimizer
from featherweight.optim.reduce import attached_reducer
from featherweight.optim.sharding import shard_of
from featherweight.optim.step.check import norm_of
from featherweight.quant.int8_weight import int8_weight_of
from featherweight.report import Report
from featherweight.unwrap import local_of

ENGINE = "weights and gradients by FSDP2"
"""Who has sent what evaluations gather, too."""


class SharedRecipe(Protocol):
    """What of a recipe several processes must agree on."""

    sharding: ShardingOptions
    accumulation_steps: int
    save_best: Any

    @property
    def method_names(self) -> list[str]:
        """Names of the methods."""
        ...

    def optimizer_config(self) -> Any:
        """Return the options of the optimizer."""
        ...

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
    versions = {"the version of featherweight": featherweight.__version__, "the version of torch": torch.__version__}
    world.require_same({**versions, "the recipe": json.dumps(recipe.to_dict(), sort_keys=True)})
    if recipe.sharding.kind == "none":
        raise common(
            ConfigError(
                f"recipe: sharding.kind=none, but {world.size} processes were started; expected ddp or fsdp2, or "
                "one process. Set sharding=ddp, or start without a launcher."
            )
        )
    if recipe.sharding.kind in ("fsdp2", "hsdp") and recipe.save_best:
        raise common(
            ConfigError(
                f"recipe: save_best={recipe.save_best} keeps the weights of one process, and sharding.kind="
                f"{recipe.sharding.kind} spreads them; expected false. Leave save_best out (checkpoint_every keeps "
                "whole checkpoints), or set sharding=ddp."
            )
        )
    if recipe.sharding.kind in ("auto", "ddp") and recipe.sharding.basis == "sharded":
        raise common(
            ConfigError(
                f"recipe: sharding.basis=sharded, but under sharding.kind={recipe.sharding.kind} every process has all "
                "of the model and its state; expected auto or replicated. Set sharding.kind=fsdp2, or leave basis out."
            )
        )
    if problem := _why_no_such_cores(recipe):
        cores = str(recipe.sharding.cores).lower()
        raise common(ConfigError(f"recipe: sharding.cores={cores} {problem}. Or set sharding.cores=auto."))
    world.require_enough(recipe.accumulation_steps)


def _why_no_such_cores(recipe: SharedRecipe) -> str | None:
    """Return what is wrong with the key `cores` of a recipe and what to do, or None."""
    options, is_layerwise = recipe.sharding, recipe.optimizer_config().layerwise
    holds_rows, leaves_cores = options.kind in ("fsdp2", "hsdp"), "core_gradient" in recipe.method_names
    if options.cores is True and holds_rows and not (is_layerwise and leaves_cores):
        return (
            f"has no cores to send under {options.kind}, which sums gradients where they are formed; expected "
            "layer-wise updates with core gradients. Set optimizer.layerwise=true and methods=[core_gradient]"
        )
    if options.cores is False and is_layerwise and (leaves_cores or not holds_rows):
        return (
            "asks for whole gradients, which layer-wise updates do not keep; expected updates after the backward pass. "
            "Set optimizer.layerwise=false and leave core_gradient out"
        )
    return None


def _require_group(count: int) -> None:
    if not torch.distributed.is_initialized():
        raise ConfigError(
            f"training: WORLD_SIZE={count} processes were started and have no group, so each would train alone; "
            "expected a group. Call fw.distributed.start() first, or start without a launcher."
        )


def share_model(world: World, model: nn.Module, recipe: SharedRecipe, build: Callable[[], Any]) -> None:
    """Make the model that of all processes, as the recipe says; a collective.

    Args:
        world: of the run.
        model: on the device of this process.
        recipe: of the run.
        build: returns an optimizer of the model as it is now, which is planned and thrown away.
    """
    if world.size > 1:
        options = recipe.sharding
        kind = "ddp" if options.kind == "auto" else options.kind
        together = world.size if kind != "hsdp" else options.shard_size or node_size(world.size)
        shard(
            model,
            kind,
            reduce_dtype=torch.bfloat16 if options.reduce_dtype == "bfloat16" else None,
            shard_size=options.shard_size,
            reshard_after_forward=options.reshard_after_forward,
            columns=columns_of_run(options, together, build),
        )


def share_gradients(
    world: World,
    model: nn.Module,
    optimizer: Optimizer,
    max_grad_norm: float | None,
    cores: Literal["auto"] | bool = "auto",
) -> None:
    """Average the gradients of an ordinary step; those of layer-wise updates and of fsdp2 are averaged already.

    Args:
        world: of the run.
        model: that `share_model` has shared.
        optimizer: one of `fw.optim`.
        max_grad_norm: if it is set whole gradients travel, whose norm it limits; else cores where they are enough.
        cores: of the recipe, which may ask for one of the two.
    """
    if (
        world.size == 1
        or is_sharded(model)
        or (isinstance(optimizer, LowRankOptimizer) and optimizer.layerwise is not None)
    ):
        return
    reducer = attached_reducer(model)
    if reducer is not None:
        whole = max_grad_norm is not None if cores == "auto" else not cores
        average_gradients_(optimizer, reducer, whole=whole)


def clip_rows_(parameters: Sequence[nn.Parameter], limit: float | None) -> float:
    """Scale the gradients of sharded parameters down to a norm over all processes, and return the norm that they had.

    Args:
        parameters: those with a gradient, sharded or not, the same on all processes.
        limit: largest norm; None only measures.
    """
    shards = [shard_of(parameter) for parameter in parameters]
    grads = [local_of(one.grad) for one in parameters]
    squares = [0.0, 0.0]  # of rows, which add up over those who share a copy, and of what all hold alike
    for one, grad in zip(shards, grads, strict=True):
        squares[0 if one is not None else 1] += float(norm_of(grad).double().square())
    collectives = next((one.collectives for one in shards if one is not None), None)
    rows = squares[0] if collectives is None else collectives.sums([squares[0]])[0]
    norm = math.sqrt(rows + squares[1])
    if limit is not None and math.isfinite(norm):
        factor = min(1.0, limit / (norm + 1e-6))  # as torch's clip_grads_with_norm_
        for grad in grads:
            grad.mul_(factor)
    return norm


def check_replicas_at(step: int, world: World, model: nn.Module, optimizer: Optimizer, every: int) -> None:
    """Compare what all processes hold alike after every so many steps; 0 never does."""
    if world.size > 1 and every and step % every == 0:
        check_replicas(model, optimizer, world=world)


def bytes_at_hand(model: nn.Module, optimizer: Optimizer) -> dict[str, int]:
    """Return the bytes of weights and optimizer state that this process holds, counted; gradients are not among them.

    Args:
        model: of sharded parameters; tied ones count once.
        optimizer: one of `fw.optim`, or of torch's form.
    """
    parameters = {id(one): one for one in model.parameters()}.values()
    handles = sum(one.element_size() for one in parameters if int8_weight_of(one) is not None)  # one NaN each
    weights = [local_of(one) for one in parameters if int8_weight_of(one) is None]
    states = [value for state in optimizer.state.values() for value in state.values()]
    return {
        "weights": sum(one.nbytes for one in weights) + handles,
        "optimizer_state": sum(local_of(one).nbytes for one in states if isinstance(one, torch.Tensor)),
    }


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
    everyone = world.gather((str(world.device), bytes_by_category))
    report = Report("Processes")
    categories = list(bytes_by_category)
    rows = [
        [f"rank {rank}", device, *[found.get(name) for name in categories]]
        for rank, (device, found) in enumerate(everyone)
    ]
    columns = ["process", "device", *[f"{name.replace('_', ' ')} (bytes)" for name in categories]]
    report.add_table("Processes", columns, rows)
    traffic = traffic_of(model)
    if traffic and steps:
        weights = sum(one.numel() * 4 for one in model.parameters() if one.requires_grad)
        sent = {words: round(one.wire_bytes(world.size) / steps) for words, one in traffic.items()}
        facts = {
            "collectives of a step": round(sum(one.calls for one in traffic.values()) / steps, 1),
            "sent by a rank in a step (bytes)": sum(sent.values()),
            **({_part(words): count for words, count in sent.items()} if len(sent) > 1 else {}),
            "as whole float32 gradients (bytes)": round(2 * (world.size - 1) / world.size * weights),
        }
        report.add_facts(facts, title="Traffic")
    return report


def _part(words: str) -> str:
    return f"of these {words}{', evaluations included' if words == ENGINE else ''} (bytes)"


def traffic_of(model: nn.Module) -> dict[str, Traffic]:
    """Return what a shared model has sent, by who sent it; empty for one process."""
    reducer = attached_reducer(model)
    found = {"sums of all": reducer.traffic} if isinstance(reducer, TorchReducer) else {}
    shards = (shard_of(parameter) for parameter in model.parameters())
    collectives: Any = next((one.collectives for one in shards if one is not None), None)
    if collectives is not None:
        found |= {"cores by rows": collectives.traffic, ENGINE: collectives.engine_traffic}
    return found
