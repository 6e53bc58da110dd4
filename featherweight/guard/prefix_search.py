"""Which opening to force: how the model's own refusals begin, or a topic, whichever tells the two classes apart best.

Source: Prefix Guidance, arXiv 2408.08924 (an opening common to the model's refusals, then the least error); the topics
and the choice by cross-validation are ours.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from featherweight.errors import ConfigError
from featherweight.guard.linear import USUAL, fit_linear
from featherweight.guard.metrics import auroc
from featherweight.guard.options import HIDDEN, GuardOptions, default_prefix_states
from featherweight.guard.prefix import prefix_ids
from featherweight.guard.reading import all_stops, batches, collect, left_padded
from featherweight.guard.scoring import Scoring
from featherweight.models.generation import generate, prefill

FALLBACK = "I'm sorry, but I cannot"
TOPICS = ("This question is about", "The user wants")
"""Openings that are no refusals: the state of the model behind them holds what it takes the request to be."""
LONG_ENOUGH = 7
"""Tokens of an opening that brings a model back."""
_REFUSALS = ("sorry", "cannot", "can't", "can not", "unable", "not able", "apolog", "won't")
_REPLIES, _REPLY_TOKENS, _ROWS, _LENGTHS, _SHARE = 24, 16, 40, (3, 5, 8, 12), 0.05


@dataclass(frozen=True)
class Candidate:
    """A prefix and how well it does."""

    text: str
    ids: tuple[int, ...]
    is_refusal: bool
    error: float
    """Mean of the two error rates at the best threshold, by cross-validation."""
    auroc: float
    """By cross-validation."""


def search_prefix(
    base: GuardOptions, model: Any, tokenizer: Any, harmful: Sequence[Any], benign: Sequence[Any], vocabulary_size: int
) -> list[Candidate]:
    """Return candidates, the best one first.

    Args:
        base: settings of the guard; its last tier is the one that counts.
        model: in evaluation mode.
        tokenizer: its own.
        harmful: prompts of the fit that ought to be refused.
        benign: others.
        vocabulary_size: tokens that the tier next_token reads.
    """
    # Both of its parts are fitted on their own; the one behind the probe stands for them.
    tier = {"states": "probe_hidden", "states_words": "probe_hidden"}.get(base.deciding.tier, base.deciding.tier)
    texts = dict.fromkeys([*_openings(model, tokenizer, harmful[:_REPLIES]), FALLBACK], True)
    if tier in HIDDEN and base.on_flag != "truncate":
        texts |= dict.fromkeys(TOPICS, False)
    options: dict[tuple[int, ...], GuardOptions] = {}
    for text, shown in texts.items():
        _, ids = prefix_ids(tokenizer, text, preamble=base.preamble_text)
        options.setdefault(ids, with_prefix(base, text, ids, shown))
    prompts = [*harmful[:_ROWS], *benign[:_ROWS]]
    labels = torch.tensor([1] * len(harmful[:_ROWS]) + [0] * len(benign[:_ROWS]))
    judges = [Scoring(one, {}, tokenizer=tokenizer) for one in options.values()]
    found = []
    for judge, collected in zip(judges, collect(judges, model, tokenizer, prompts), strict=True):
        judge.vocabulary = likeliest(collected.evidence.next_ids, vocabulary_size)
        _, scores = fit_linear(judge.features(tier, collected.evidence), labels, strengths=USUAL)
        one = judge.options
        quality = auroc(scores[labels == 1], scores[labels == 0])
        found.append(Candidate(one.prefix_text, one.prefix_ids, one.shows_prefix, least_error(scores, labels), quality))
    return sorted(found, key=_rank)


def _rank(one: Candidate) -> tuple[float, float, bool, int]:
    """Order candidates; of equal ones the shorter is cheaper, unless it is too short.

    Differs from the paper, where the shorter one always wins: behind "I'm sorry" alone, a model that was talked out of
    its policy has not come back yet. In the stand-in of the tests no such request was flagged there, 46 % were behind
    "I'm sorry, but", and all of them behind "I'm sorry, but I cannot" (7 tokens).
    """
    return round(one.error, 6), -round(one.auroc, 6), len(one.ids) < LONG_ENOUGH, len(one.ids)


def least_error(scores_N: Tensor, labels_N: Tensor) -> float:
    """Return the mean of the two error rates at the best threshold."""
    levels = torch.cat([scores_N.unique(), torch.tensor([-float("inf")])])
    flagged = scores_N[None, :] > levels[:, None]
    missed = 1 - flagged[:, labels_N == 1].double().mean(dim=1)
    alarms = flagged[:, labels_N == 0].double().mean(dim=1)
    return float(((missed + alarms) / 2).min())


def likeliest(next_ids_BK: Tensor | None, count: int) -> Tensor:
    """Return the tokens that most often stand among the likeliest ones after the prefix, in order of their ids."""
    if next_ids_BK is None:
        raise ConfigError("guard: evidence=next_ids was not read; expected it. Read it with the probe.")
    counted = Counter(next_ids_BK.reshape(-1).tolist())
    return torch.tensor(sorted(token for token, _ in counted.most_common(count)))


def with_prefix(base: GuardOptions, text: str, ids: tuple[int, ...], shown: bool) -> GuardOptions:
    """Return the settings with another prefix, and the states that are read of one of its length."""
    chosen = {"prefix_text": text, "prefix_ids": ids, "shows_prefix": shown}
    return GuardOptions.parse({**base.to_dict(), **chosen, "prefix_states": default_prefix_states(ids)})


def _openings(model: Any, tokenizer: Any, prompts: Sequence[Any]) -> list[str]:
    """Return the commonest openings of the model's own refusals, of several lengths."""
    stops = all_stops(model, tokenizer)
    refusals = []
    for _, rows in batches(tokenizer, prompts, 16):
        ids, mask = left_padded(rows)
        replies = generate(prefill(model, ids, mask), max_new_tokens=_REPLY_TOKENS, stop_token_ids=stops)
        for reply in replies.tolist():
            kept = reply[: next((place for place, token in enumerate(reply) if token in stops), len(reply))]
            text = tokenizer.decode(kept, skip_special_tokens=True).lower()
            if any(word in text for word in _REFUSALS):
                refusals.append(tuple(kept))
    found = []
    for length in _LENGTHS:
        counted = Counter(reply[:length] for reply in refusals if len(reply) >= length).most_common(1)
        if counted and counted[0][1] >= max(2, _SHARE * len(prompts)):
            text = tokenizer.decode(counted[0][0], skip_special_tokens=True).strip()
            if text:
                found.append(text)
    return found
