"""How the micro-batches of an optimizer step go through the model: one after another, layer by layer, or in chunks.

All leave the same gradients (or, with layer-wise updates, weights) and return the mean loss; who runs the loop need
not know which it is.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from featherweight.distributed.world import World, common
from featherweight.errors import ConfigError
from featherweight.training.chunk_major import ChunkMajor
from featherweight.training.layer_major import LayerMajor
from featherweight.training.recipe import Recipe
from featherweight.training.step_progress import StepProgress
from featherweight.training.task import Batch, Task

DEFAULT_CHUNK_TOKENS = 8192
SECONDS_BETWEEN_WORDS = 0.5
"""A listener is told of the progress inside a step no more often than that."""


@dataclass(frozen=True)
class Surroundings:
    """What the passes of a run work with."""

    task: Task
    model: nn.Module
    world: World
    layerwise: Any
    """The handle of layer-wise updates, or None."""
    autocast: Callable[[], AbstractContextManager[Any]]
    """Makes the context in which losses are computed."""
    judge: Callable[[float, int], float]
    """Takes the summed loss of this process and all items, returns the mean loss; refuses one that is not finite."""
    tell: Callable[[StepProgress], None]
    """Hears how far a long step has come."""


class Passes(ABC):
    """The forward and backward passes of an optimizer step."""

    @abstractmethod
    def run(self, micro_batches: Sequence[Batch], items: int, passes: int) -> float:
        """Run all micro-batches of this process.

        Args:
            micro_batches: on the device.
            items: what the loss sums over, in all processes.
            passes: backward passes that every process makes.
        Returns:
            The mean loss, which is finite.
        """


class BatchByBatch(Passes):
    """Each micro-batch goes through the whole model before the next one."""

    def __init__(self, around: Surroundings) -> None:
        self.around = around

    def run(self, micro_batches: Sequence[Batch], items: int, passes: int) -> float:
        """See `Passes.run`."""
        around, own = self.around, len(micro_batches)
        device = around.world.device
        # Apple's GPUs know no float64.
        total = torch.zeros((), device=device, dtype=torch.float32 if device.type == "mps" else torch.float64)
        mean_loss: float | None = None
        # Reducers take the mean over processes, and what is wanted is the mean over the items of all of them.
        per_item = items / around.world.size
        for index in range(passes):
            with around.autocast():
                loss, _ = around.task.loss(around.model, micro_batches[min(index, own - 1)])
            if index < own:
                total += loss.detach()
            else:
                loss = loss * 0.0  # once more, so that all processes make equally many passes
            if index == passes - 1 and (around.layerwise is not None or around.world.size > 1):
                mean_loss = around.judge(float(total), items)  # this backward pass moves the weights
            (loss / per_item).backward()
        return around.judge(float(total), items) if mean_loss is None else mean_loss


class InChunks(Passes):
    """All micro-batches in one call, rows in chunks; which of the two orders says who makes `stream`."""

    stream: LayerMajor | ChunkMajor
    """Makes the steps."""

    def __init__(self, around: Surroundings, recipe: Recipe) -> None:
        self.around, self._told_at = around, 0.0
        if not around.task.predicts_next_token:
            raise ConfigError(
                f"recipe: schedule.order={recipe.schedule.order} beside task={recipe.task['name']}, whose loss is not "
                "that of the next token alone; expected a task such as text or chat. Set schedule.order=batch."
            )

    def run(self, micro_batches: Sequence[Batch], items: int, passes: int) -> float:
        """See `Passes.run`."""
        around = self.around
        with around.autocast():
            own = items / around.world.size  # what judges adds up over the processes, who all have the mean
            loss = self.stream.step(micro_batches, judge=lambda loss: around.judge(float(loss) * own, items))
        return float(loss)

    def _tell(self, progress: StepProgress) -> None:
        now = time.monotonic()
        if now - self._told_at >= SECONDS_BETWEEN_WORDS:
            self._told_at = now
            self.around.tell(progress)


class ChunkByChunk(InChunks):
    """Each chunk goes through the whole model before the next one; see `ChunkMajor`.

    Raises:
        ConfigError: if the recipe, the task or the model does not allow it.
    """

    def __init__(self, around: Surroundings, recipe: Recipe) -> None:
        super().__init__(around, recipe)
        if around.world.size > 1:
            raise common(
                ConfigError(
                    f"recipe: schedule.order=chunk in {around.world.size} processes; expected one, or order=layer. Set "
                    "schedule.order=layer."
                )
            )
        tokens = _chunk_tokens(recipe)
        self.stream = ChunkMajor(around.model, around.layerwise, chunk_tokens=tokens, progress=self._tell)


class LayerByLayer(InChunks):
    """Each layer sees all micro-batches, chunk by chunk, before the next layer; see `LayerMajor`.

    Raises:
        ConfigError: if the recipe, the task or the model does not allow it.
    """

    stream: LayerMajor

    def __init__(self, around: Surroundings, recipe: Recipe) -> None:
        super().__init__(around, recipe)
        schedule = recipe.schedule
        chunk_tokens = _chunk_tokens(recipe)
        if around.world.size > 1 and (recipe.sharding.kind not in ("auto", "ddp") or around.layerwise is None):
            how = f"sharding={recipe.sharding.kind}" if around.layerwise is not None else "without layer-wise updates"
            problem = (
                f"recipe: schedule.order=layer in {around.world.size} processes, {how}; expected whole layers in each "
                "of them that are averaged as they are updated. Set sharding=ddp and optimizer.layerwise=true, or "
                "schedule.order=batch."
            )
            raise common(ConfigError(problem))
        self.stream = LayerMajor(
            around.model,
            around.layerwise,
            chunk_tokens=chunk_tokens,
            inputs=schedule.inputs,
            weights=schedule.weights,
            states=schedule.states,
            attention=schedule.attention,
            progress=self._tell,
        )


def _chunk_tokens(recipe: Recipe) -> int:
    """Return the chunks of a recipe; at most a row.

    Raises:
        ConfigError: for chunks that are longer than a row.
    """
    key, given = recipe.task_class.length_key, recipe.schedule.chunk_tokens
    longest = None if key is None else getattr(recipe.task_config(), key, None)
    if given is None:
        return min(DEFAULT_CHUNK_TOKENS, longest or DEFAULT_CHUNK_TOKENS)
    if longest is not None and given > longest:
        raise ConfigError(
            f"recipe: schedule.chunk_tokens={given} is longer than the rows of task.{key}={longest}; expected at most "
            "that. Lower schedule.chunk_tokens, or set it to null."
        )
    return given


def passes_of(around: Surroundings, recipe: Recipe) -> Passes:
    """Return what a recipe's schedule asks for."""
    in_chunks = {"layer": LayerByLayer, "chunk": ChunkByChunk}.get(recipe.schedule.order)
    return BatchByBatch(around) if in_chunks is None else in_chunks(around, recipe)


def window_of(recipe: Recipe, passes: int) -> int:
    """Return the backward passes of a step, as layer-wise updates count them, from those that every process makes.

    Steps in chunks tell the passes of each parameter apart; that of layers keeps no sum longer than its layer needs
    it, so 1 stands for it, while sums stay through the chunks of a step by chunks.
    """
    return {"layer": 1, "chunk": max(2, passes)}.get(recipe.schedule.order, passes)
