"""The scores of every tier, fitted on what was read of labelled prompts, and compared on rows that no fit has seen."""

from collections.abc import Sequence

import torch
from torch import Tensor

from featherweight.guard.evidence import Evidence
from featherweight.guard.finetuned import finetune
from featherweight.guard.linear import FOLDS, STRENGTHS, USUAL, CrossFitted, cross_fit, fit_linear
from featherweight.guard.metrics import auroc
from featherweight.guard.options import READ_AT
from featherweight.guard.prefix_search import likeliest
from featherweight.guard.quality import Measured
from featherweight.guard.reading import Collected
from featherweight.guard.scoring import Scoring
from featherweight.guard.splits import Rows
from featherweight.guard.text_features import bow_features

NEXT_TOKEN_FEATURES = 50
PARTS = ("prefix_hidden", "probe_hidden")
"""Tiers whose log-odds `states` adds up: each is fitted alone, which overfits less than both together."""
WORDS = "prompt words alone"
"""The reference that reads no model: what a list of words would do; `states_words` adds its log-odds to `states`."""


def measure_tiers(
    judge: Scoring, collected: Collected, rows: Rows, deciding: Sequence[str], *, text_base: str | None = None
) -> dict[str, Measured]:
    """Fit every tier and score all rows: those of the fit by folds that had not seen them.

    Args:
        judge: gets the fitted scores; with the caller's own function of texts, if there is one.
        collected: what was read of the rows.
        rows: with labels and parts.
        deciding: tiers whose penalty is chosen with care; the others are for the table.
        text_base: folder of the model that `text_classifier: finetune` starts from; None takes MiniLM.
    """
    labels = torch.tensor([int(kind == "harmful") for kind in rows.kinds])
    fit = torch.tensor([part == "fit" for part in rows.parts])
    # A row and the same row in a frame are never in two folds.
    groups = [key for key, part in zip(rows.keys, rows.parts, strict=True) if part == "fit"]
    categories = [name for name, part in zip(rows.categories, rows.parts, strict=True) if part == "fit"]
    judge.vocabulary = likeliest(collected.evidence.next_ids, NEXT_TOKEN_FEATURES)
    if judge.options.text_classifier == "finetune":
        texts = judge.texts(collected.evidence)
        places = fit.nonzero().squeeze(1).tolist()
        judge.classifier = finetune(
            [texts[place] for place in places], [int(labels[place]) for place in places], base=text_base
        )
    kinds = [kind for kind, part in zip(rows.kinds, rows.parts, strict=True) if part == "fit"]
    measured, fitted = {}, {}
    for tier in readable_tiers(collected.evidence):
        if tier in ("states", "states_words"):
            continue
        strengths = STRENGTHS if tier in deciding else USUAL
        features = judge.features(tier, collected.evidence)
        fitted[tier] = cross_fit(features[fit].cpu(), labels[fit], groups, kinds=kinds, strengths=strengths)
        judge.scores[tier] = fitted[tier].score
        measured[tier] = measured_by(fitted[tier], fit, features, unseen_auroc(features[fit], labels[fit], categories))
    fitted["states"] = fitted[PARTS[0]].beside(fitted[PARTS[1]])
    judge.scores["states"] = fitted["states"].score
    measured["states"] = measured_by(fitted["states"], fit, judge.features("states", collected.evidence))
    has_words = "states_words" in readable_tiers(collected.evidence)
    texts = ["\n".join(str(one.get("content") or "") for one in message) for message in rows.messages]
    features = judge.word_features(collected.evidence) if has_words else bow_features(texts)
    words = cross_fit(features[fit].cpu(), labels[fit], groups, kinds=kinds, strengths=USUAL)
    if has_words:
        both = fitted["states"].beside(words)
        judge.scores["states_words"] = both.score
        measured["states_words"] = measured_by(both, fit, judge.features("states_words", collected.evidence))
    measured[WORDS] = measured_by(words, fit, features, unseen_auroc(features[fit], labels[fit], categories))
    return measured


def readable_tiers(evidence: Evidence) -> list[str]:
    """Return the tiers that can be fitted: openings are compared only where a calibration asked for it, and words need
    the tokens of the requests.
    """
    missing = ["continuation"] if evidence.opening_logprobs is None else []
    missing += [] if evidence.prompt_ids else ["states_words"]
    return [tier for tier in READ_AT if tier not in missing]


def measured_by(fitted: CrossFitted, fit: Tensor, features: Tensor, unseen: float | None = None) -> Measured:
    """Return what a score says of all rows; of those of the fit, by folds that had not seen them.

    Args:
        fitted: on the rows of the fit.
        fit: (N,) bool: which those are.
        features: (N, F) of all rows.
        unseen: see `Measured`.
    """

    def again(features_NF: Tensor) -> Tensor:
        scores = fitted.score(features_NF.cpu())
        scores[fit] = fitted.held_out(features_NF[fit].cpu())
        return scores

    return Measured(again(features), unseen, again)


def unseen_auroc(features: Tensor, labels: Tensor, categories: list[str]) -> float | None:
    """Return how well rows are told apart whose category the fit has not seen, by folds over categories.

    Returns:
        None where a class has too few categories for folds.
    """
    for label in (0, 1):
        names = {name for name, one in zip(categories, labels.tolist(), strict=True) if one == label}
        if "" in names or len(names) < FOLDS:
            return None
    _, scores = fit_linear(features.cpu(), labels, categories, strengths=USUAL)
    return auroc(scores[labels == 1], scores[labels == 0])
