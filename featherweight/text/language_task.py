"""What every task on text shares: whose model, weights and tokenizer, micro-batches of rows, a folder at the end.

A task says where its rows are (`row_count`, `collate`) and what its loss is; the order of the rows, the held-out pass
and the first facts of the report come from here.
Shapes: B rows of a micro-batch, L tokens of its longest one.
"""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from featherweight.errors import ConfigError
from featherweight.models.facts import ModelFacts
from featherweight.models.save import save_model_folder
from featherweight.models.weights import begins_pretrained
from featherweight.text.row_order import RowOrder, micro_batch_rows
from featherweight.text.skeleton import TextSkeleton
from featherweight.training.order import micro_batch_numbers
from featherweight.training.task import Split, Task


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
        """See `LanguageConfig.check_weights`."""
        config.check_weights(adapters)

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
