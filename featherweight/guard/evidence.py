"""What a guard knows of requests: hidden states, likelihoods and the text that the model writes after the prefix.

Each tier turns one part of it into features, which a linear classifier scores:

    hidden         hidden states at the last token of the prompt
    logprob        log-likelihood of the forced prefix
    next_token     log-probabilities of the likeliest tokens after the prefix
    prefix_hidden  hidden states at the last tokens of the prefix
    continuation   likelihood of the openings of policy reasons after the prefix, against that of other openings
    probe          the text that the model writes after the prefix
    probe_hidden   mean hidden states over the tokens that it writes there
    states         both: the log-odds of prefix_hidden and probe_hidden together
    states_words   those and the log-odds of the words of the request

Shapes: B requests, P tokens of the prefix, V vocabulary, H layers times hidden size.
Source: Prefix Guidance, arXiv 2408.08924, is the tier `probe`.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from featherweight.errors import ConfigError
from featherweight.guard.options import GuardOptions

NEXT_TOKENS = 64
"""So many of the likeliest next tokens are kept of each request."""

TENSORS = (
    "prompt_hidden",
    "prefix_logprob",
    "prefix_hidden",
    "next_ids",
    "next_logprobs",
    "opening_logprobs",
    "probe_hidden",
)
"""Parts of the evidence that are tensors with a row for each request."""
LISTS = ("prompt_ids", "probe_ids", "probe_ended")
"""Parts that are lists with an entry for each request."""


@dataclass
class Evidence:
    """What is known of B requests; None where it was not read."""

    prompt_hidden: Tensor | None = None
    """(B, H) float32"""
    prefix_logprob: Tensor | None = None
    """(B,) float32: of the whole prefix, each token after those before it."""
    prefix_hidden: Tensor | None = None
    """(B, H) float32, with the deepest layer of the tokens in front of the last one behind it where those are read."""
    next_ids: Tensor | None = None
    """(B, NEXT_TOKENS) int64: the likeliest tokens after the prefix."""
    next_logprobs: Tensor | None = None
    """(B, NEXT_TOKENS) float32"""
    opening_logprobs: Tensor | None = None
    """(B, C) float32: of each opening that the options name, after the prefix."""
    probe_hidden: Tensor | None = None
    """(B, H) float32: mean over the probe tokens that were read; of the prefix where there are none."""
    prompt_ids: list[list[int]] = field(default_factory=list)
    """The tokens of each request; [] unless some tier reads its words."""
    probe_ids: list[list[int]] = field(default_factory=list)
    """The probe tokens of each request, without the one that ends a reply."""
    probe_ended: list[bool] = field(default_factory=list)
    """Whether the model ended its reply inside of the probe."""


def join_evidence(parts: list[Evidence]) -> Evidence:
    """Return the evidence of several batches as that of one."""
    tensors: dict[str, Any] = {}
    for name in TENSORS:
        values = [getattr(part, name) for part in parts]
        tensors[name] = None if values[0] is None else torch.cat(values)
    lists: dict[str, Any] = {name: [one for part in parts for one in getattr(part, name)] for name in LISTS}
    return Evidence(**tensors, **lists)


def take_evidence(evidence: Evidence, rows: list[int]) -> Evidence:
    """Return the evidence of some requests, in the order asked for."""
    tensors: dict[str, Any] = {name: value[rows] for name, value in vars(evidence).items() if isinstance(value, Tensor)}
    lists: dict[str, Any] = {
        name: [known[row] for row in rows] if (known := getattr(evidence, name)) else [] for name in LISTS
    }
    return Evidence(**tensors, **lists)


def prefix_logprob(before_BV: Tensor, after_BPV: Tensor, prefix_ids: Tensor) -> Tensor:
    """Return the log-likelihood of a prefix.

    Args:
        before_BV: logits in front of it.
        after_BPV: logits after each of its tokens.
        prefix_ids: (P,)

    Returns:
        (B,) float32.
    """
    logits_BPV = torch.cat([before_BV[:, None], after_BPV[:, :-1]], dim=1).float()
    chosen_BP = logits_BPV.gather(2, prefix_ids.expand(len(before_BV), -1)[..., None]).squeeze(2)
    return (chosen_BP - logits_BPV.logsumexp(dim=2)).sum(dim=1)


def hidden_features(hidden_states: tuple[Tensor, ...], layers: tuple[int, ...]) -> Tensor:
    """Return the chosen hidden states of each row side by side: (B, H) float32."""
    return torch.cat([hidden_states[layer].float() for layer in layers], dim=1)


def prefix_features(
    hidden_states: tuple[Tensor, ...], read_states: tuple[Tensor, ...] | None, options: GuardOptions
) -> Tensor:
    """Return the hidden states at the end of the prefix side by side: (B, at least H) float32.

    Args:
        hidden_states: (B, D) of each layer, at the last token.
        read_states: (B, at least P, D) of each layer, at all tokens; needed where several are read.
        options: say which.
    """
    last_BH = hidden_features(hidden_states, options.layers)
    count = options.prefix_states
    if count == 1 or not options.layers:
        return last_BH
    assert read_states is not None, "the prefix was read in one call"
    earlier_BPD = read_states[max(options.layers)][:, -count:-1].float()
    return torch.cat([last_BH, earlier_BPD.flatten(1)], dim=1)


def next_token_features(evidence: Evidence, vocabulary: Tensor) -> Tensor:
    """Return the log-probabilities of given tokens; where one was not among the likeliest, the least that was kept.

    Args:
        evidence: with `next_ids`.
        vocabulary: (F,) int64: the tokens.

    Returns:
        (B, F) float32.
    """
    ids, values = required(evidence, "next_ids"), required(evidence, "next_logprobs")
    found_BFK = vocabulary[None, :, None] == ids[:, None, :]
    least_B1 = values.min(dim=1, keepdim=True).values
    shown_BF = torch.where(found_BFK, values[:, None, :], float("-inf")).max(dim=2).values
    return torch.maximum(shown_BF, least_B1)


def required(evidence: Evidence, name: str) -> Tensor:
    """Return a part of the evidence.

    Raises:
        ConfigError: if it was not read.
    """
    value = getattr(evidence, name)
    if value is None:
        raise ConfigError(f"guard: evidence={name} was not read; expected it for this tier. Read it with the probe.")
    return value
