"""A language model and its micro-batches by shape alone: what the planner trains in simulation.

No weights are read, no text is tokenised; model and batches are those of `TextTask` in everything that decides memory.
Shapes: B rows of a micro-batch, L = seq_len.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from featherweight.errors import ConfigError
from featherweight.models.configuration import new_model
from featherweight.models.facts import model_configuration
from featherweight.models.positions import RopeScaling, stretch_configuration
from featherweight.models.sources import ModelSource
from featherweight.text.causal_loss import summed_loss
from featherweight.text.packing import IGNORED_LABEL
from featherweight.training.task import Batch, Skeleton, Words


class TextSkeleton(Skeleton):
    """Stands for a task of text in a simulation.

    Args:
        model: as in the options of the text task.
        seq_len: tokens of one row.
        layers: build only so many of the decoder layers; None builds all.
        length_key: what a message calls the length of a row.
        stretched: `max_positions` and `rope_scaling` of the task.
    Raises:
        ConfigError: if the model does not exist, or `seq_len` is longer than it can read.
    """

    words = Words()
    predicts_next_token = True

    def __init__(
        self,
        model: ModelSource,
        *,
        seq_len: int,
        layers: int | None = None,
        length_key: str = "seq_len",
        stretched: tuple[int | None, RopeScaling] = (None, "none"),
    ) -> None:
        self.seq_len = seq_len
        self._configuration = model_configuration(model)
        if stretched[0] is not None:
            stretch_configuration(self._configuration, stretched[0], stretched[1], where="text task")
        text = self._configuration.get_text_config()
        self.longest: int | None = getattr(text, "max_position_embeddings", None)
        if self.longest is not None and seq_len > self.longest:
            raise ConfigError(
                f"text task: {length_key}={seq_len} is longer than max_position_embeddings={self.longest} of "
                f"the model; expected 2 <= {length_key} <= {self.longest}. Lower {length_key}, set "
                f"max_positions={seq_len} to stretch its positions, or choose another model."
            )
        self.period = _period(getattr(text, "layer_types", None) or ["all"])
        self.layers: int | None = text.num_hidden_layers if text.num_hidden_layers % self.period == 0 else None
        if layers is not None:
            text.num_hidden_layers = layers
            if getattr(text, "layer_types", None):
                text.layer_types = text.layer_types[:layers]

    def build_model(self) -> nn.Module:
        """Return the model, with the weights of whatever device or mode is on."""
        return new_model(self._configuration).train()

    def batches(self, split: Any, *, micro_batch_size: int, **others: Any) -> Iterator[dict[str, Tensor]]:
        """Yield micro-batches of the right shapes for ever; their content means nothing."""
        while True:
            # No name here: it would keep a batch alive while the next one is asked for.
            yield {name: _zeros((micro_batch_size, self.seq_len)) for name in ("input_ids", "labels")}

    def item_count(self, batch: Batch) -> int:
        """Return the tokens that full rows predict, with the memory that the task takes to count them."""
        labels_BL = batch["labels"]
        (labels_BL[:, 1:] != IGNORED_LABEL).sum()
        return labels_BL.shape[0] * (labels_BL.shape[1] - 1)

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, int]:
        """Return the sum of the token losses and their number, as the task does."""
        return summed_loss(model, batch)


def _zeros(shape: tuple[int, int]) -> Tensor:
    return torch.zeros(shape, dtype=torch.int64)


def _period(kinds: Sequence[str]) -> int:
    """Return after how many layers their kinds repeat.

    Example:
        >>> _period(["sliding", "full"] * 13), _period(["full"] * 4), _period(["sliding", "sliding", "full"])
        (2, 1, 3)
    """
    return next(p for p in range(1, len(kinds) + 1) if all(a == b for a, b in zip(kinds, kinds[p:], strict=False)))
