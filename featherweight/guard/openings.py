"""How the model would go on behind the forced prefix: the likelihood of openings that it is known to write there.

Where a refusal is meant, the openings of policy reasons are likelier than the others. Nothing is generated.
Shapes: B requests, C openings of K tokens, V vocabulary.
"""

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from featherweight.errors import ConfigError
from featherweight.models.decoding_rows import keep_rows
from featherweight.models.generation import Decoding, extend, fork

COUNT, TOKENS = 6, 5
"""Openings of each kind, and the tokens of one."""
_ROWS = 64
"""So many rows are read together, a request with an opening each."""


def choose_openings(
    probes: Sequence[Sequence[int]], labels: Sequence[int]
) -> tuple[tuple[tuple[int, ...], ...], tuple[tuple[int, ...], ...]]:
    """Return the commonest openings of probes of requests that ought to be refused, and of the others.

    An opening counts for the kind in which it is more frequent.

    Args:
        probes: their tokens, of the fit.
        labels: 1 for what ought to be refused.

    Raises:
        ConfigError: if one kind has none.
    """
    length = min(TOKENS, max((len(one) for one in probes), default=0))
    counts: tuple[Counter[tuple[int, ...]], Counter[tuple[int, ...]]] = (Counter(), Counter())
    for probe, label in zip(probes, labels, strict=True):
        if length and len(probe) >= length:
            counts[label][tuple(probe[:length])] += 1
    sums = [max(1, one.total()) for one in counts]
    found = []
    for kind in (1, 0):
        own, other = counts[kind], counts[1 - kind]
        kept = [one for one in own if own[one] / sums[kind] > other[one] / sums[1 - kind]]
        found.append(tuple(sorted(kept, key=lambda one: (-own[one], one))[:COUNT]))
    if not all(found):
        raise ConfigError(
            "guard calibrate: tier=continuation finds no opening of its own in the probes of one class; expected the "
            "model to go on differently. Take another tier, or another prefix."
        )
    return found[0], found[1]


@torch.no_grad()
def opening_logprobs(decoding: Decoding, openings: Sequence[Sequence[int]]) -> Tensor:
    """Return the log-likelihood of openings behind what was read.

    Args:
        decoding: of B rows; left as it is.
        openings: C of them, of one length.

    Returns:
        (B, C) float32.

    Cost: B * C * (K - 1) token-forwards, and copies of the cache for up to 64 rows.
    """
    openings_CK = torch.tensor(openings, device=decoding.token_ids.device)
    found_BC = decoding.logits.float().log_softmax(dim=1)[:, openings_CK[:, 0]]
    if openings_CK.shape[1] == 1:
        return found_BC
    rows, parts = torch.arange(decoding.rows, device=openings_CK.device), []
    for part_GK in openings_CK.split(max(1, _ROWS // decoding.rows)):
        trial = fork(decoding)
        keep_rows(trial, rows.repeat_interleave(len(part_GK)))
        tokens_RK = part_GK.repeat(decoding.rows, 1)
        logits_RKV = extend(trial, tokens_RK[:, :-1]).float()
        chosen_RK = logits_RKV.gather(2, tokens_RK[:, 1:, None]).squeeze(2) - logits_RKV.logsumexp(dim=2)
        parts.append(chosen_RK.sum(dim=1).view(decoding.rows, -1))
    return found_BC + torch.cat(parts, dim=1)


def continuation_features(logprobs_BC: Tensor, policy_count: int) -> Tensor:
    """Return how much likelier the openings of policy reasons are than the others: (B, 1) float32 log-odds.

    Args:
        logprobs_BC: of all openings, those of policy reasons first.
        policy_count: how many those are.
    """
    policy_B = logprobs_BC[:, :policy_count].logsumexp(dim=1)
    return (policy_B - logprobs_BC[:, policy_count:].logsumexp(dim=1))[:, None]
