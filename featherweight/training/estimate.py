"""`estimate_memory`: what a recipe would need on a device, without that device, the weights or the data.

The training loop itself runs on fake tensors: model, methods, optimizer, micro-batches, clipping. Two steps are made:
the first one creates the optimizer's state and bases, the second one is an ordinary one in which the largest projected
parameter is also due for a refresh. A model of many equal layers is run with two and with three of them, and its
timeline put together from these.
"""

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    UnsupportedFakeTensorException,
)

from featherweight.errors import ConfigError, NumericsError
from featherweight.memory.cost import StepCost
from featherweight.memory.ledger import Allocation, Category
from featherweight.memory.simulate import simulation
from featherweight.memory.timeline import Timeline, extend
from featherweight.memory.tracker import StorageTracker
from featherweight.simulated import SimulatedDevice
from featherweight.training.footprint import predict_bytes
from featherweight.training.loop import Loop
from featherweight.training.recipe import Recipe, RecipeSource, load_recipe
from featherweight.training.task import Skeleton, Task

_DEPTHS = (2, 3, 4)
"""Depths that are simulated, in units of equal layers (pairs where two kinds alternate); the last one only if what the
second has more is not like what the first has."""
_CUDA_BLOCK_BYTES = 512
"""Every block of the CUDA caching allocator is a multiple of this many bytes."""


@dataclass(frozen=True)
class MemoryEstimate:
    """The memory of two training steps, allocation by allocation."""

    recipe: Recipe
    """What was simulated."""
    device: SimulatedDevice
    """Where."""
    timeline: Timeline
    """Everything that is allocated and freed; its steps are marked."""
    cost: StepCost
    """Work of the second step."""
    tokens_per_step: int
    """Items (tokens) that the loss of one optimizer step sums over."""
    predicted: Mapping[str, int]
    """Weights, gradients and optimizer state by the formulas of the run's report, in bytes."""
    is_whole: bool
    """All layers were simulated; else two and three of them, from which the rest follows."""

    @property
    def peak_bytes(self) -> int:
        """Most bytes that are alive at one moment."""
        return self.timeline.peak_bytes

    @property
    def peak_by_category(self) -> dict[Category, int]:
        """Bytes of each category at that moment."""
        return self.timeline.peak().by_category

    @property
    def peak_by_module(self) -> dict[str, int]:
        """Bytes by module at that moment, the most first; equal layers are one entry."""
        totals: Counter[str] = Counter()
        for allocation, count in self.timeline.alive_at(self.timeline.peak().index):
            totals[allocation.module] += count * allocation.size_bytes
        return dict(totals.most_common())

    def top_allocations(self, limit: int = 10) -> list[tuple[Allocation, int]]:
        """Return the largest kinds of storages at the peak and how many there are of each."""
        return self.timeline.alive_at(self.timeline.peak().index)[:limit]


def estimate_memory(
    model: Any, recipe: RecipeSource, *, device: str | SimulatedDevice = "cuda", whole: bool = False
) -> MemoryEstimate:
    """Simulate the training steps of a recipe and return the memory that they need.

    Args:
        model: takes the place of the recipe's `task.model`: a name, folder or configuration as recipes know them, a
            transformers configuration, or a model (only its configuration counts). None keeps the recipe's.
        recipe: a recipe, a mapping, or the path of a YAML or JSON file.
        device: "cuda", "cpu", or a `SimulatedDevice` with the size of its memory.
        whole: simulate all layers even where few tell of all.
    Raises:
        ConfigError: if the recipe is wrong, or its task or a method of it cannot be simulated.
    Cost: some seconds of one core; no weights are allocated or read.
    """
    parsed = with_model(load_recipe(recipe), model)
    target = SimulatedDevice(device) if isinstance(device, str) else device
    found = _estimate(parsed, target, whole)
    if target.kind != "cuda":
        return found
    return replace(found, timeline=found.timeline.rounded(_CUDA_BLOCK_BYTES))


def _estimate(parsed: Recipe, target: SimulatedDevice, whole: bool) -> MemoryEstimate:
    """Return the estimate with sizes that are not rounded yet: a list that grows with the layers grows evenly."""
    full = skeleton_of(parsed)
    draws_lots = getattr(parsed.optimizer_config(), "full_rank_probability", 0) > 0  # each parameter its own
    depths = [depth * full.period for depth in _DEPTHS]
    if not (whole or draws_lots) and full.layers is not None and full.layers > depths[-1]:
        units = full.layers // full.period
        shallow = _simulate(parsed, skeleton_of(parsed, depths[0]), target)
        for depth in _DEPTHS[1:]:
            deep = _simulate(parsed, skeleton_of(parsed, depth * full.period), target)
            for must_repeat in (True,) if depth < _DEPTHS[-1] else (True, False):
                if (extended := _extended(shallow, deep, depth, units, must_repeat)) is not None:
                    return extended
            shallow = deep
    return _simulate(parsed, full, target)


def _extended(
    shallow: MemoryEstimate, deep: MemoryEstimate, depth: int, layers: int, must_repeat: bool
) -> MemoryEstimate | None:
    """Return what follows for all units of layers from models of depth - 1 and of depth; None if they differ else."""
    timeline = extend(shallow.timeline, deep.timeline, layers - (depth - 1), must_repeat=must_repeat)
    if timeline is None:
        return None
    more = layers - depth
    predicted = {name: count + more * (count - shallow.predicted[name]) for name, count in deep.predicted.items()}
    cost = deep.cost.plus_layers(shallow.cost, more)
    return replace(deep, timeline=timeline, predicted=predicted, cost=cost, is_whole=False)


def formula_bytes(recipe: Recipe) -> dict[str, int]:
    """Return weights, gradients and optimizer state of a recipe by formula, without a step.

    Raises:
        ConfigError: as `estimate_memory`.
    """
    grown, more = _grown(recipe, lambda loop: predict_bytes(loop.model, loop.optimizer))
    if recipe.optimizer_config().layerwise:
        grown["gradients"] = more["gradients"]  # those of the largest parameter, whatever the depth
    return grown


def counted_over_layers(recipe: Recipe, count: Callable[[Loop], dict[str, int]]) -> dict[str, int]:
    """Return what is counted of a recipe's loop by shape alone; of many equal layers few are built.

    Args:
        recipe: of a task that can be simulated.
        count: numbers of a loop that has made no step; each grows evenly with the layers.
    Raises:
        ConfigError: as `estimate_memory`.
    """
    return _grown(recipe, count)[0]


def _grown(recipe: Recipe, count: Callable[[Loop], dict[str, int]]) -> tuple[dict[str, int], dict[str, int]]:
    """Return numbers of the whole model, and those of the deepest one that was built."""

    def counted(task: Task) -> dict[str, int]:
        with simulation(SimulatedDevice("cpu")), _explained(recipe):
            return count(Loop(recipe, task=task))

    full = skeleton_of(recipe)
    depths = [depth * full.period for depth in _DEPTHS]
    if full.layers is None or full.layers <= depths[1]:
        found = counted(full)
        return dict(found), found
    less, more = (counted(skeleton_of(recipe, depth)) for depth in depths[:2])
    rest = (full.layers - depths[1]) // full.period
    return {name: number + rest * (number - less[name]) for name, number in more.items()}, more


def with_model(recipe: Recipe, model: Any) -> Recipe:
    """Return the recipe with another model in its task; None leaves it."""
    if model is None:
        return recipe
    source: Any = getattr(model, "config", model) if isinstance(model, nn.Module) else model
    more: dict[str, Any] = {}
    if hasattr(source, "to_diff_dict"):
        folder = str(getattr(source, "_name_or_path", "") or "")
        if isinstance(model, nn.Module) and folder and Path(folder).is_dir():
            source = folder
        else:
            # The recipe must not train new weights where a model with weights was planned for.
            more = {"weights": "pretrained"} if "weights" in recipe.task_class.Config.model_fields else {}
            source = {"model_type": source.model_type, **source.to_dict()}
    if not isinstance(source, str | Mapping):
        raise ConfigError(
            f"estimate_memory: model={type(model).__name__} is no model; expected a name, a folder, a configuration, "
            "or a transformers model. Give one of these, or None for the recipe's own."
        )
    return Recipe.parse({**recipe.to_dict(), "task": {**recipe.task, "model": source, **more}}, where="recipe")


def skeleton_of(recipe: Recipe, layers: int | None = None) -> Skeleton:
    """Return the task of a recipe by shape alone, with so many layers; None: all.

    Raises:
        ConfigError: if the task cannot be run so.
    """
    skeleton = recipe.task_class.skeleton(recipe.task_config(), seed=recipe.seed, layers=layers)
    if skeleton is None:
        raise ConfigError(
            f"estimate_memory: task={recipe.task['name']} cannot be run by shape alone; expected a task such as text. "
            "Measure it instead: fw measure."
        )
    return skeleton


def _simulate(recipe: Recipe, task: Task, device: SimulatedDevice) -> MemoryEstimate:
    cost = StepCost()
    with simulation(device, cost), _explained(recipe):
        # A third micro-batch takes what the second one does.
        few = min(recipe.accumulation_steps, 2)
        loop = Loop(recipe.override(["memory_steps=[]", f"accumulation_steps={few}"]), task=task)
        waiting = recipe.accumulation_steps - few
        with StorageTracker(loop.model, loop.optimizer, keep_history=True) as tracker:
            tracker.mark_step()
            _step(loop, waiting)
            _let_largest_refresh(loop.optimizer)
            tracker.mark_step()
            cost.clear()
            with _costs_before_each_loss(task, cost) as costs:
                _step(loop, waiting)
            if few == 2:
                cost = cost.plus(costs[1].plus(costs[0], -1), recipe.accumulation_steps - 2)
        predicted = predict_bytes(loop.model, loop.optimizer)
        batch = next(task.batches("train", micro_batch_size=recipe.micro_batch_size, seed=0))
        tokens = recipe.accumulation_steps * task.item_count(batch)
    return MemoryEstimate(recipe, device, tracker.timeline(), cost, tokens, predicted, is_whole=True)


def _step(loop: Loop, waiting: int) -> None:
    """Make a step while so many micro-batches more are on the device."""
    batches = loop.task.batches("train", micro_batch_size=loop.recipe.micro_batch_size, seed=0)
    held = list(itertools.islice(batches, waiting))
    loop.step()
    del held


@contextmanager
def _costs_before_each_loss(task: Task, cost: StepCost) -> Iterator[list[StepCost]]:
    costs: list[StepCost] = []
    original = task.loss

    def loss(model: nn.Module, batch: Any) -> Any:
        costs.append(cost.plus(StepCost(), 0))
        return original(model, batch)

    with patch.object(task, "loss", loss):
        yield costs


def _let_largest_refresh(optimizer: torch.optim.Optimizer) -> None:
    """Make a refresh due: of the largest parameter with a basis; of all where none is staggered against the others."""
    due = [(p, state) for p, state in optimizer.state.items() if "next_refresh" in state]
    if not due:
        return
    largest = max(due, key=lambda pair: pair[0].numel())[0]
    is_staggered = {id(p): group.get("stagger", True) for group in optimizer.param_groups for p in group["params"]}
    for parameter, state in due:
        if parameter is largest or not is_staggered[id(parameter)]:
            state["next_refresh"].copy_(state["step"])


@contextmanager
def _explained(recipe: Recipe) -> Iterator[None]:
    """Turn what a simulation cannot do into one sentence."""
    try:
        yield
    except (
        DataDependentOutputException,
        DynamicOutputShapeException,
        UnsupportedFakeTensorException,
        NumericsError,  # whoever checks numbers, needs them
    ) as error:
        raise ConfigError(
            f"estimate_memory: methods={recipe.methods} with optimizer={recipe.optimizer['name']} decide by numbers "
            f"({type(error).__name__}), which a simulation does not have; expected a recipe whose shapes are known "
            "before. Measure it instead: fw measure."
        ) from error
