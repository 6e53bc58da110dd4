"""What every task on text shares: whose model, weights and tokenizer, micro-batches of rows, a folder at the end.

A task says where its rows are (`row_count`, `collate`) and what its loss is; the order of the rows, the held-out pass
and the first facts of the report come from here.
Shapes: B rows of a micro-batch, L tokens of its longest one.
"""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn

from featherweight.config import Config
from featherweight.errors import ConfigError
from featherweight.models.facts import ModelFacts
from featherweight.models.save import save_model_folder
from featherweight.models.weights import begins_pretrained, check_weights
from featherweight.text.row_order import RowOrder, micro_batch_rows
from featherweight.text.skeleton import TextSkeleton
from featherweight.text.sources import ONLY_CHAT_STREAMS
from featherweight.training.order import micro_batch_numbers
from featherweight.training.task import Split, Task


class LanguageConfig(Config):
    """Options of every task that trains a model of transformers on text."""

    model: str | dict[str, Any] = "smollm2"
    """smollm2, tiny, a shape such as llama-60m, a model folder, a .gguf or .json file, a name of the Hugging Face hub,
    or the configuration of a new model."""
    weights: Literal["pretrained", "random"] | None = None
    """With which weights training begins. None: those of the model; a name of a shape, such as llama-3-8b, has none and
    is refused. random: new ones, also for a model that has some."""
    tokenizer: str | None = None
    """Whose tokenizer: any source of a model, or bytes. None: the model's own; a new model has bytes."""
    max_positions: int | None = Field(default=None, ge=2)
    """Tokens that the model is to read at most, where that is more than its configuration says; the trained model says
    so, too. None: what it says."""
    rope_scaling: Literal["none", "linear", "yarn"] = "yarn"
    """How `max_positions` stretches rotary positions; none: not at all, for new weights, or a model that can."""
    held_out_seed: int = 0
    """Seed of the held-out split; apart from the run's seed, so that runs with different seeds are compared on the same
    rows."""

    @model_validator(mode="before")
    @classmethod
    def _streams_or_says_so(cls, values: Any) -> Any:
        if isinstance(values, dict) and "stream" in values and "stream" not in cls.model_fields:
            raise ValueError(f"stream={values['stream']} {ONLY_CHAT_STREAMS}")
        return values

    @field_validator("held_out", check_fields=False)
    @classmethod
    def _is_a_share(cls, held_out: float | str) -> float | str:
        if isinstance(held_out, float | int) and not 0 < held_out < 1:
            raise ValueError(
                "is out of range; expected 0 < held_out < 1, or the path of a file. Set it to 0.05, for example."
            )
        return held_out


class RowLimits(LanguageConfig):
    """Limits on the rows of a task whose data are rows."""

    max_train_rows: int | None = Field(default=None, ge=1)
    """Use only the first so many training rows; None uses all."""
    max_held_out_rows: int | None = Field(default=None, ge=1)
    """Use only the first so many held-out rows; None uses all."""


class LanguageTask(Task):
    """The part of a task on text that does not depend on what its rows are."""

    where: ClassVar[str]
    """Opens messages, such as "task chat"."""
    length_key = "max_tokens"
    config: Any
    seed: int
    tokenizer: Any

    @classmethod
    def skeleton(cls, config: Any, *, seed: int, layers: int | None = None) -> TextSkeleton:
        """Return a task whose rows all have the longest length, without data and weights; see `Skeleton`."""
        length = getattr(config, cls.length_key)
        stretched = (config.max_positions, config.rope_scaling)
        return TextSkeleton(config.model, seq_len=length, layers=layers, length_key=cls.length_key, stretched=stretched)

    @classmethod
    def is_pretrained(cls, config: Any) -> bool:
        """Tell whether training begins with the weights of a trained model, be it under a new head."""
        return begins_pretrained(config.model, config.weights)

    @classmethod
    def check_weights(cls, config: Any, adapters: Sequence[str] = ()) -> None:
        """Refuse a shape without weights, and adapters on random ones; see `featherweight.models.weights`."""
        check_weights(config.model, config.weights, adapters=adapters, where=cls.where)

    @abstractmethod
    def row_count(self, split: Split) -> int:
        """Return the rows of a split."""

    def train_rows(self) -> int | None:
        """Return the training rows; None of a stream, whose end nobody knows."""
        return None if getattr(self.config, "stream", False) else self.row_count("train")

    @abstractmethod
    def collate(self, split: Split, rows: Sequence[int]) -> dict[str, Tensor]:
        """Return rows of a split as a micro-batch."""

    def row_order(self) -> RowOrder:
        """Say how training rows are drawn; by default every one once in an epoch, in an order of its own."""
        return RowOrder([range(self.row_count("train"))])

    def batches(
        self,
        split: Split,
        *,
        micro_batch_size: int,
        seed: int,
        process_rank: int = 0,
        world_size: int = 1,
        start: int = 0,
    ) -> Iterator[dict[str, Tensor]]:
        """Yield micro-batches; what stands in them says the task. Arguments: see `Task.batches`.

        Args:
            split: "train" never ends; every epoch visits each row once, in an order given by (seed, epoch), and a
                micro-batch may span two epochs. "held_out" is one pass in fixed order; its last micro-batch may be
                smaller.
            micro_batch_size: rows per micro-batch, B.
            seed: of the order.
            process_rank: which share; micro-batches are dealt out in turn.
            world_size: number of shares.
            start: micro-batches of this share to skip; nothing is computed for them.
        Raises:
            ConfigError: if a number is out of range.
        """
        numbers = micro_batch_numbers(
            micro_batch_size=micro_batch_size,
            process_rank=process_rank,
            world_size=world_size,
            start=start,
            where=self.where,
        )
        if split == "train":
            return self._train_batches(numbers, micro_batch_size, seed)
        return self._held_out_batches(numbers, micro_batch_size)

    def save_model(self, model: nn.Module, folder: Path) -> None:
        """Write model and tokenizer, with the template that trained, as a folder that `transformers` opens.

        It appears complete or not at all.

        Raises:
            ConfigError: if the folder holds something else, or cannot be written.
        """
        save_model_folder(model, self.tokenizer, Path(folder))

    def _train_batches(self, numbers: Iterator[int], micro_batch_size: int, seed: int) -> Iterator[dict[str, Tensor]]:
        rows = micro_batch_rows(numbers, self.row_order(), micro_batch_size=micro_batch_size, seed=seed)
        return (self.collate("train", chosen) for chosen in rows)

    def _held_out_batches(self, numbers: Iterator[int], size: int) -> Iterator[dict[str, Tensor]]:
        count = self.row_count("held_out")
        for number in numbers:
            chosen = range(count)[number * size : (number + 1) * size]
            if not chosen:
                return
            yield self.collate("held_out", chosen)


def facts_of(task: LanguageTask, facts: ModelFacts) -> dict[str, object]:
    """Return what a report says first of a task: the model and how it begins."""
    return {
        "model": facts.name,
        "weights": "pretrained" if task.is_pretrained(task.config) else "random",
        "model_type": facts.model_type,
        "parameters": facts.parameters,
        "vocab_size": facts.vocab_size,
    }


def require_length(task: LanguageTask, facts: ModelFacts) -> None:
    """Refuse rows that are longer than the model reads.

    Raises:
        ConfigError: with the key to change.
    """
    key, longest = task.length_key, facts.max_position_embeddings
    length = getattr(task.config, key)
    if longest is not None and length > max(longest, task.config.max_positions or 0):
        raise ConfigError(
            f"{task.where}: {key}={length} is longer than max_position_embeddings={longest} of model '{facts.name}'; "
            f"expected 2 <= {key} <= {longest}. Lower {key}, set max_positions={length} to stretch its positions, or "
            "choose another model."
        )
