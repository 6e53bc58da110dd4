"""Tasks that learn to predict tokens: the model with where its answers end, the loss and the metrics they share.

Shapes: B rows of a micro-batch, L tokens of its longest one, V vocabulary.
"""

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from featherweight.errors import ConfigError
from featherweight.models.facts import ModelFacts
from featherweight.models.load import load_model
from featherweight.models.positions import stretch_positions
from featherweight.models.templates import stop_ids
from featherweight.text.causal_loss import held_out_metrics, summed_loss
from featherweight.text.language_task import LanguageTask
from featherweight.text.packing import predicted_tokens
from featherweight.training.task import Batch


@dataclass(frozen=True)
class Endings:
    """Where answers under a tokenizer's template end, and what stands behind rows."""

    stops: tuple[int, ...]
    pad: int

    @classmethod
    def of(cls, tokenizer: Any, *, where: str) -> "Endings":
        """Look at a tokenizer; one without a padding token pads by its end mark, as labels say what counts.

        Raises:
            ConfigError: if nothing ends an answer.
        """
        stops = tuple(stop_ids(tokenizer))
        if not stops:
            raise ConfigError(
                f"{where}: tokenizer={tokenizer.name_or_path or type(tokenizer).__name__} has no eos_token, and no "
                "special token ends an answer under its template; expected one, as the trained model would never stop. "
                "Set eos_token in its tokenizer_config.json."
            )
        pad: int | None = tokenizer.pad_token_id
        return cls(stops, pad if pad is not None else stops[0])

    def write(self, model: nn.Module) -> None:
        """Let a model's generation end where answers end."""
        settings: Any = getattr(model, "generation_config", None)
        if settings is not None:
            settings.eos_token_id = list(self.stops) if len(self.stops) > 1 else self.stops[0]
            settings.pad_token_id = self.pad


def begin_model(task: LanguageTask) -> nn.Module:
    """Return the causal model of a task with float32 weights on the CPU; random weights follow from the task's seed."""
    config, is_random = task.config, task.config.weights == "random"
    model = load_model(config.model, tokenizer=task.tokenizer, seed=task.seed, random_weights=is_random)
    if config.max_positions is not None:
        stretch_positions(model, config.max_positions, config.rope_scaling, where=task.where)
    return model


class CausalTask(LanguageTask):
    """The part of a task that every one shares whose loss is that of the next token."""

    facts: ModelFacts
    predicts_next_token = True

    def build_model(self) -> nn.Module:
        """Return the model with float32 weights on the CPU; random weights follow from the task's seed."""
        return begin_model(self)

    @property
    def guessing_loss(self) -> float:
        """Loss of a model that knows nothing: the logarithm of the size of its vocabulary, in nats."""
        return math.log(self.facts.vocab_size)

    def item_count(self, batch: Batch) -> int:
        """Return how many tokens the loss of `batch` sums over: labels at positions 1..L-1 that are not ignored."""
        return predicted_tokens(batch["labels"])

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, int]:
        """Return the float32 sum of the token losses, with its graph, and their number; see `summed_loss`."""
        return summed_loss(model, batch)

    def evaluate(self, model: nn.Module, *, micro_batch_size: int) -> dict[str, float]:
        """Return held_out_loss (mean over the learnt tokens, in nats), perplexity (its exponential) and tokens.

        The model's training mode comes back afterwards.
        """
        batches = self.batches("held_out", micro_batch_size=micro_batch_size, seed=0)
        return held_out_metrics(model, batches, self.loss, self.share)
