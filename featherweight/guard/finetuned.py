"""A text classifier for probes that is trained as a whole (the paper's way), with what the published code lacks.

Differs from the official code: dropout is on while it trains, the rate warms up and falls to 0 exactly at the last
step (there it came back up in the middle), texts are cut at what the model can read, and it is stored without a pickle.
Source: Prefix Guidance, arXiv 2408.08924: RoBERTa-base, two classes, cross-entropy, lr 1e-5.
"""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from featherweight.errors import ConfigError
from featherweight.guard.text_features import encoder_folder

WARM_UP = 0.1
"""Of the steps."""


class FineTuned:
    """A trained classifier.

    Args:
        model: for sequences, of two classes.
        tokenizer: its own.
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model, self.tokenizer = model.eval(), tokenizer

    @torch.no_grad()
    def __call__(self, texts: Sequence[str], *, batch_size: int = 64) -> Tensor:
        """Return (N, 1) float32: how much likelier a text is a reason of policy."""
        parts = [torch.empty(0, 1)]
        for start in range(0, len(texts), batch_size):
            logits_B2 = self.model(**encoded(self.tokenizer, self.model, texts[start : start + batch_size])).logits
            parts.append((logits_B2[:, 1:] - logits_B2[:, :1]).float())
        return torch.cat(parts)

    def save(self, folder: Path) -> None:
        """Write it: settings, safetensors, tokenizer."""
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what `save` wrote."""
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32, use_safetensors=True)
        return cls(model, AutoTokenizer.from_pretrained(folder))


def encoded(tokenizer: Any, model: Any, texts: Sequence[str]) -> Any:
    """Return texts as a batch, cut at what the model can read."""
    most = min(512, int(getattr(model.config, "max_position_embeddings", 512)) - 2)
    return tokenizer(list(texts), padding=True, truncation=True, max_length=most, return_tensors="pt")


def learning_rate_at(step: int, steps: int, lr: float) -> float:
    """Return the rate of a step: it warms up over the first tenth, then falls in a line, to 0 behind the last step.

    Example:
        >>> [round(learning_rate_at(step, 20, 1.0), 2) for step in (0, 1, 2, 11, 19)]
        [0.5, 1.0, 1.0, 0.5, 0.06]
    """
    warm = max(1, round(WARM_UP * steps))
    return lr * (step + 1) / warm if step < warm else lr * (steps - step) / (steps - warm)


def finetune(
    texts: Sequence[str],
    labels: Sequence[int],
    *,
    base: str | Path | None = None,
    epochs: int = 4,
    lr: float = 3e-5,
    batch_size: int = 32,
    seed: int = 0,
) -> FineTuned:
    """Train a classifier.

    Args:
        texts: of probes, as `featherweight.guard.text_features.classified_text` makes them.
        labels: 1 for a reason of policy, 0 for another one.
        base: folder of a model to start from (BERT, RoBERTa and their like); None takes MiniLM, 22.7 M parameters.
        epochs: over all texts.
        lr: the highest rate.
        batch_size: texts of a step.
        seed: of order, dropout and the new head.

    Raises:
        ConfigError: if a class has no text.
        MissingExtraError: if the package with the weights of MiniLM is missing.
    """
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    if len(set(labels)) < 2:
        raise ConfigError("guard: labels are all the same; expected texts of both classes. Add the other one.")
    folder = encoder_folder() if base is None else base
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2, dtype=torch.float32)
        tokenizer, draw = AutoTokenizer.from_pretrained(folder), random.Random(seed)
        optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.01)
        steps, step = epochs * -(-len(texts) // batch_size), 0
        shares = torch.bincount(torch.tensor(labels), minlength=2).double() / len(labels)
        weights = (0.5 / shares).float()
        model.train()
        for _ in range(epochs):
            order = draw.sample(range(len(texts)), len(texts))
            for start in range(0, len(order), batch_size):
                places = order[start : start + batch_size]
                logits = model(**encoded(tokenizer, model, [texts[place] for place in places])).logits
                goal = torch.tensor([labels[place] for place in places])
                loss = torch.nn.functional.cross_entropy(logits, goal, weight=weights)
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate_at(step, steps, lr)
                optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                step += 1
    return FineTuned(model, tokenizer)
