"""The choice of the next token: the likeliest, or one drawn from the model's distribution after its tail is cut off.

Shapes: B rows of a batch, V vocabulary.
"""

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor

from featherweight.config import Config
from featherweight.errors import ShapeError

Generators = torch.Generator | Sequence[torch.Generator]
"""One source of random numbers for a batch, or one for each of its rows."""


class Sampling(Config):
    """How the next token is chosen. The default takes the likeliest one and draws no random numbers."""

    temperature: float = Field(default=0.0, ge=0)
    """Divides the logits; 0 takes the likeliest token."""
    top_k: int | None = Field(default=None, ge=1)
    """Draw from that many of the likeliest tokens; None from all."""
    top_p: float | None = Field(default=None, gt=0, le=1)
    """Draw from the likeliest tokens that together have this probability; None from all. The likeliest always stays."""


GREEDY = Sampling()
"""Takes the likeliest token."""


def probabilities(logits_BV: Tensor, sampling: Sampling) -> Tensor:
    """Return the distribution that a token is drawn from.

    Args:
        logits_BV: (B, V), any float type. Not modified.
        sampling: with a temperature above 0. First `top_k` cuts, then the rest adds up to 1, then `top_p` cuts.

    Returns:
        (B, V) float32, each row adding up to 1.

    Cost: with `top_p` one sort of each row.

    Example:
        >>> probabilities(torch.tensor([[0.0, 0.0, -9.0]]), Sampling(temperature=1.0, top_k=2))
        tensor([[0.5000, 0.5000, 0.0000]])
    """
    logits_BV = logits_BV.float() / sampling.temperature
    if sampling.top_k is not None and sampling.top_k < logits_BV.shape[1]:
        least_B1 = logits_BV.topk(sampling.top_k, dim=1).values[:, -1:]
        logits_BV = logits_BV.masked_fill(logits_BV < least_B1, float("-inf"))
    shares_BV = logits_BV.softmax(dim=1)
    if sampling.top_p is None or sampling.top_p == 1:
        return shares_BV
    sorted_BV, order_BV = shares_BV.sort(dim=1, descending=True, stable=True)
    # A token goes if those before it have enough already; nothing is before the first.
    sorted_BV = sorted_BV.masked_fill(sorted_BV.cumsum(dim=1) - sorted_BV >= sampling.top_p, 0.0)
    kept_BV = torch.zeros_like(shares_BV).scatter_(1, order_BV, sorted_BV)
    return kept_BV / kept_BV.sum(dim=1, keepdim=True)


def choose(logits_BV: Tensor, sampling: Sampling = GREEDY, generators: Generators | None = None) -> Tensor:
    """Return the next token of each row.

    Args:
        logits_BV: (B, V), any float type. Not modified.
        sampling: how.
        generators: on the device of the logits; with one for each row, a row does not depend on its company. None takes
            torch's global one.

    Returns:
        (B,) int64.

    Raises:
        ShapeError: if there are neither one nor B generators.
    """
    if sampling.temperature == 0:
        return logits_BV.argmax(dim=1)
    shares_BV = probabilities(logits_BV, sampling)
    if generators is None or isinstance(generators, torch.Generator):
        return torch.multinomial(shares_BV, 1, generator=generators).squeeze(1)
    if len(generators) != len(shares_BV):
        raise ShapeError(
            f"choose: generators={len(generators)} do not fit a batch of {len(shares_BV)} rows; expected one, or one "
            "for each row. Make one for each prompt."
        )
    return torch.cat([torch.multinomial(row, 1, generator=one) for row, one in zip(shares_BV, generators, strict=True)])
