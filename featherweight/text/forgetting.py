"""What a model has forgotten: how far its predictions on neutral text are from those of the model that it came from.

Shapes: B rows, L tokens of a row, V vocabulary.
"""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn


@torch.no_grad()
def measure_forgetting(model: nn.Module, base: nn.Module, rows: Iterable[Tensor]) -> dict[str, float]:
    """Compare a fine-tuned model with its base on text that has nothing to do with the fine-tuning.

    Args:
        model: fine-tuned causal language model.
        base: as it was before; both modes come back afterwards.
        rows: token ids, each (L,) or (B, L), L >= 2.
    Returns:
        kl: mean over positions of KL(base || model) in nats; perplexity and base_perplexity of the same text; tokens.
    Cost: two forward passes; the logits of one entry of `rows` at a time, twice in float32.
    """
    modes = [(one, one.training) for one in (model, base)]
    kl = loss = base_loss = 0.0
    count = 0
    try:
        for one, _ in modes:
            one.eval()
        for row in rows:
            ids = torch.atleast_2d(row).to(next(model.parameters()).device)
            log_p = _log_probabilities(base, ids)
            log_q = _log_probabilities(model, ids)
            targets = ids[:, 1:, None]
            base_loss -= float(log_p.gather(-1, targets).double().sum())
            loss -= float(log_q.gather(-1, targets).double().sum())
            kl += float((log_p.exp() * (log_p - log_q)).sum(-1).double().sum())
            count += targets.numel()
    finally:
        for one, was_training in modes:
            one.train(was_training)
    return {
        "kl": kl / count,
        "perplexity": math.exp(loss / count),
        "base_perplexity": math.exp(base_loss / count),
        "tokens": count,
    }


def _log_probabilities(model: nn.Module, ids_BL: Tensor) -> Tensor:
    logits: Tensor = model(input_ids=ids_BL, use_cache=False).logits[:, :-1]
    return logits.float().log_softmax(-1)
