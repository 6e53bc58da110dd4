"""The contract between the training loop and a workload: data, model, loss and metrics of one kind of work.

The loop knows no text, images or fields; it calls a `Task`. Tasks register by name, so that a recipe can name them,
and as strings, so that naming one imports nothing else.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

from torch import Tensor, nn

from featherweight.config import Config as StrictConfig
from featherweight.registry import Registry

Batch = Mapping[str, Tensor]
"""One micro-batch: names to tensors whose first axis counts the samples."""

Split = Literal["train", "held_out"]


@dataclass(frozen=True)
class Words:
    """What a task counts and measures, as reports call it. The defaults are those of text."""

    items: str = "tokens"
    """What `Task.item_count` counts, in the plural."""
    loss: str = "nats/token"
    """Unit, or meaning, of the loss of one item."""
    metrics: tuple[str, ...] = ("perplexity",)
    """Metrics of `Task.evaluate` that stand beside the held-out loss where several runs are compared."""


def words_of(task: "Task") -> Words:
    """Return the words of a task: its attribute `words`, which it need not have, or those of text."""
    return getattr(task, "words", Words())


class Task(Protocol):
    """Data, model, loss and metrics of one workload.

    A task that counts something else than tokens has an attribute `words` (`Words`), which need not be there.
    Everything that is random follows from `seed`, so that two processes that build the same task see the same numbers.
    """

    Config: ClassVar[type[StrictConfig]]
    """Strict options of the task: what stands beside `name` under the recipe's key `task`."""

    def __init__(self, config: Any, *, seed: int) -> None:
        """Read the data and prepare the splits; `config` is an instance of `self.Config`."""

    def build_model(self) -> nn.Module:
        """Return the model in float32 on the CPU, the same under the same seed; the loop casts and moves it."""
        ...

    def batches(
        self,
        split: Split,
        *,
        micro_batch_size: int,
        seed: int,
        process_rank: int = 0,
        world_size: int = 1,
        start: int = 0,
    ) -> Iterator[Batch]:
        """Yield micro-batches.

        Args:
            split: "train" never ends and is shuffled anew in every epoch by (seed, epoch); "held_out" is one pass in
                fixed order.
            micro_batch_size: samples per micro-batch and process.
            seed: of the shuffling.
            process_rank: which share of the data; 0 <= process_rank < world_size.
            world_size: number of shares, without overlap.
            start: micro-batches to skip, at no cost; this is how a resumed run finds its place.
        """
        ...

    def item_count(self, batch: Batch) -> int:
        """Return how many items (tokens, pixels, ...) the loss of `batch` sums over; known before the forward."""
        ...

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, int]:
        """Return the float32 sum of the item losses, with its graph, and the number of items."""
        ...

    def evaluate(self, model: nn.Module, *, micro_batch_size: int) -> dict[str, float]:
        """Return the metrics of the held-out split, "held_out_loss" among them; the model's mode is left as it was."""
        ...

    def save_model(self, model: nn.Module, folder: Path) -> None:
        """Write the model as a folder that its ecosystem opens without featherweight (Hugging Face for text)."""
        ...

    def describe(self) -> dict[str, object]:
        """Return names and exact counts for the report: model, parameters, samples or tokens of each split."""
        ...


class Skeleton(Task, Protocol):
    """A task by shape alone, for simulations: `Task.skeleton(config, *, seed, layers=None)` of a class makes it.

    Its model and batches take whatever memory those of the task would; there are no data and no weights behind them.
    `item_count` tells from the shapes of a batch how many items it has where all count.
    """

    layers: int | None
    """Equal layers of the whole model; None if they differ, so that fewer of them tell nothing of more."""
    period: int
    """Layers after which their kinds repeat: 1 if all are equal, 2 if two kinds alternate."""
    length_key: str
    """Option of the task that says how long a row is."""
    longest: int | None
    """Longest sequence that the model takes; None for no limit."""


tasks: Registry[type[Task]] = Registry("task")
"""Every task by the name that a recipe uses."""

tasks.register("text", "featherweight.text.task:TextTask")
tasks.register("instructions", "featherweight.text.instruction_task:InstructionTask")
tasks.register("pde", "featherweight.pde.task:PdeTask")
