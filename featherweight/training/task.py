"""The contract between the training loop and a workload: data, model, loss and metrics of one kind of work.

The loop knows no text, images or fields; it calls a `Task`. Tasks register by name, so that a recipe can name them,
and as strings, so that naming one imports nothing else. `tests/contracts/test_task.py` holds every one to this page.
"""

import importlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from featherweight.config import Config as StrictConfig
from featherweight.errors import ConfigError
from featherweight.registry import Registry
from featherweight.training.share import Share

if TYPE_CHECKING:
    # A recipe is judged before torch is imported.
    from torch import Tensor, nn

Batch = Mapping[str, "Tensor"]
"""One micro-batch: names to tensors whose first axis counts the samples."""

Split = Literal["train", "held_out"]


@dataclass(frozen=True)
class Words:
    """What a task counts and measures, as reports and files call it. The defaults are those of text."""

    items: str = "tokens"
    """What `Task.item_count` counts, in the plural."""
    loss: str = "nats/token"
    """Unit, or meaning, of the loss of one item."""
    metrics: tuple[str, ...] = ("perplexity",)
    """Metrics of `Task.evaluate` that stand beside the held-out loss where several runs are compared."""

    @property
    def count_key(self) -> str:
        """Name of the count of items among the metrics of a step, such as "tokens"."""
        return self.items.replace(" ", "_")

    @property
    def rate_key(self) -> str:
        """Name of their number a second, such as "tokens_per_s"."""
        return f"{self.count_key}_per_s"


class Task(ABC):
    """Data, model, loss and metrics of one workload.

    Everything that is random follows from `seed`, so that two processes that build the same task see the same numbers.
    What has a default here is what a task may know more.
    """

    Config: ClassVar[type[StrictConfig]]
    """Strict options of the task: what stands beside `name` under the recipe's key `task`."""
    words: Words = Words("samples", "loss/sample", ())
    """What the task counts and measures."""
    share = Share()
    """What of the held-out split this process evaluates: all of it, unless a run in several says otherwise."""
    predicts_next_token: ClassVar[bool] = False
    """Whether the loss is that of a causal language model's next tokens alone, and a batch holds its arguments."""
    length_key: ClassVar[str | None] = None
    """Option that says how long a row is, for tasks whose rows have a length."""

    @abstractmethod
    def __init__(self, config: Any, *, seed: int) -> None:
        """Read the data and prepare the splits; `config` is an instance of `self.Config`."""

    @abstractmethod
    def build_model(self) -> "nn.Module":
        """Return the model in float32 on the CPU, the same under the same seed; the loop casts and moves it."""

    @abstractmethod
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
        """Yield micro-batches; `featherweight.training.order` says which rows stand in which.

        Args:
            split: "train" never ends and is shuffled anew in every epoch by (seed, epoch); "held_out" is one pass in
                fixed order.
            micro_batch_size: samples per micro-batch and process.
            seed: of the shuffling.
            process_rank: which share of the data; 0 <= process_rank < world_size.
            world_size: number of shares, without overlap.
            start: micro-batches to skip, at no cost; this is how a resumed run finds its place.
        """

    @abstractmethod
    def loss(self, model: "nn.Module", batch: Batch) -> "tuple[Tensor, int]":
        """Return the float32 sum of the item losses, with its graph, and the number of items."""

    @abstractmethod
    def evaluate(self, model: "nn.Module", *, micro_batch_size: int) -> dict[str, float]:
        """Return the metrics of the held-out split, "held_out_loss" among them; the model's mode is left as it was.

        In a run of several processes all of them call it: `share` says which micro-batches are whose, and sums.
        """

    def held_out_share(self, micro_batch_size: int) -> "Iterator[tuple[Batch, bool]]":
        """Yield the micro-batches of the held-out split that this process evaluates, and whether they count."""
        return self.share.of(self.batches("held_out", micro_batch_size=micro_batch_size, seed=0))

    @abstractmethod
    def save_model(self, model: "nn.Module", folder: Path) -> None:
        """Write the model as a folder that its ecosystem opens without featherweight (Hugging Face for text)."""

    @abstractmethod
    def describe(self) -> dict[str, object]:
        """Return names and exact counts for the report: model, parameters, samples or tokens of each split."""

    def prepare(self, model: "nn.Module") -> None:  # noqa: B027 - most tasks have nothing to ask
        """Look at the model as it begins to train: methods applied, on its device, no checkpoint restored yet.

        What a task compares with the start is computed here. The model's mode and weights are left as they are.
        """

    def after_step(self, model: "nn.Module") -> None:  # noqa: B027 - most tasks have nothing to do
        """Do what is due after an optimizer step; the weights are left as they are. Nothing by default."""

    def item_count(self, batch: Batch) -> int:
        """Return how many items (tokens, pixels, ...) the loss of `batch` sums over; known before the forward.

        By default the samples.
        """
        return len(next(iter(batch.values())))

    def train_rows(self) -> int | None:
        """Return the samples of one epoch of the training split; default: None, nobody knows them (a stream)."""
        return None

    def illustrate(self, model: "nn.Module", folder: Path) -> list[Path]:
        """Draw what the trained model does, as files in the folder of the run, and return those made; default: none.

        The model's mode is left as it was.
        """
        return []

    @classmethod
    def illustrate_together(cls, runs: Mapping[str, Path], folder: Path) -> list[Path]:
        """Draw several runs of one recipe side by side from what `illustrate` left in their folders; default: nothing.

        Args:
            runs: name of a method -> the folder of its run.
            folder: where the pictures go.
        Returns:
            The files made.
        """
        return []

    @classmethod
    def skeleton(cls, config: Any, *, seed: int, layers: int | None = None) -> "Skeleton | None":
        """Return the task by shape alone, with so many layers (None: all); default: None, it cannot be simulated."""
        return None

    @classmethod
    def is_pretrained(cls, config: Any) -> bool:
        """Tell whether training begins with the weights of a trained model; default: no."""
        return False

    @classmethod
    def check_weights(cls, config: Any, adapters: Sequence[str] = ()) -> None:
        """Refuse weights to begin with that nobody chose, or on which `adapters` learn nothing; default: none are.

        Args:
            config: options.
            adapters: names of the recipe's methods that need a trained model.
        """
        return None

    @property
    def guessing_loss(self) -> float | None:
        """Loss of one item of a model that knows nothing; None: unknown."""
        return None

    @classmethod
    def run_name(cls, config: Any, name: str) -> str:
        """Return what a run is called whose recipe has no name of its own; default: the name of the recipe's file."""
        return name


class Skeleton(Task):
    """A task by shape alone, for simulations: no data and no weights are behind it.

    Its model and batches take whatever memory those of the task would. `item_count` tells from the shapes of a batch
    how many items it has where all count.
    """

    layers: int | None
    """Equal layers of the whole model; None if they differ, so that fewer of them tell nothing of more."""
    period: int = 1
    """Layers after which their kinds repeat: 1 if all are equal, 2 if two kinds alternate."""
    longest: int | None = None
    """Longest row that the model takes; None for no limit."""

    def train_rows(self) -> int:
        """Return more rows than any schedule asks for: a simulation has no data, and its rates change no byte."""
        return 2**48

    def evaluate(self, model: "nn.Module", *, micro_batch_size: int) -> dict[str, float]:
        """Refuse: there is nothing to evaluate on."""
        raise self._has_no_data("evaluated")

    def save_model(self, model: "nn.Module", folder: Path) -> None:
        """Refuse: there are no weights."""
        raise self._has_no_data("saved")

    def describe(self) -> dict[str, object]:
        """Return nothing."""
        return {}

    def _has_no_data(self, what: str) -> ConfigError:
        return ConfigError(
            f"{type(self).__name__}: a task by shape alone cannot be {what}; expected the task itself. Build it with "
            "recipe.build_task()."
        )


tasks: Registry[type[Task]] = Registry("task", "featherweight.tasks")
"""Every task by the name that a recipe uses."""

_OPTIONS: dict[str, str] = {}
for _name, _place, _options in (
    ("text", "text.task:TextTask", "text.options:TextConfig"),
    ("chat", "text.chat_task:ChatTask", "text.options:ChatConfig"),
    ("preference", "text.preference_task:PreferenceTask", "text.options:PreferenceConfig"),
    ("classification", "text.classification_task:ClassificationTask", "text.options:ClassificationConfig"),
    ("instructions", "text.instruction_task:InstructionTask", "text.options:InstructionConfig"),
    ("pde", "pde.task:PdeTask", "pde.options:PdeConfig"),
    ("bev", "bev.task:BEVTask", "bev.options:BEVConfig"),
    ("robot", "robot.learning.task:RobotTask", "robot.learning.options:RobotTaskConfig"),
    ("robot_act", "robot.learning.act_task:ACTTask", "robot.learning.options:ACTTaskConfig"),
):
    tasks.register(_name, f"featherweight.{_place}")
    _OPTIONS[_name] = f"featherweight.{_options}"


def task_options(name: str) -> type[StrictConfig]:
    """Return `Task.Config` of a task; of those that this package brings, without importing torch.

    Raises:
        ConfigError: if the name is unknown.
    """
    if name not in _OPTIONS:
        return tasks.get(name).Config
    module, _, attribute = _OPTIONS[name].partition(":")
    found: type[StrictConfig] = getattr(importlib.import_module(module), attribute)
    return found
