"""How a guard is made from prompts with labels: fit, threshold with a promise, and an honest report.

Rows for the fit, for the threshold and for the report never mix. What ought to be refused is what the caller's files
say; nothing here knows a topic.
Source: Prefix Guidance, arXiv 2408.08924; thresholds by split-conformal prediction.
"""

import math
import random
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from featherweight.errors import ConfigError, did_you_mean
from featherweight.guard.fingerprint import fingerprint
from featherweight.guard.frames import FIT_FRAMES, REPORT_FRAME, framed
from featherweight.guard.linear import STRENGTHS, USUAL, Linear, fit_linear
from featherweight.guard.metrics import conformal_threshold
from featherweight.guard.options import FLAG_ONLY, READ_AT, REFUSAL, GuardOptions, default_layers
from featherweight.guard.prefix import prefix_ids
from featherweight.guard.prefix_search import FALLBACK, TOPIC, Candidate, likeliest, search_prefix
from featherweight.guard.prompt_files import PromptSet, read_prompts, refuse_shared
from featherweight.guard.quality import Measured, make_report
from featherweight.guard.reading import Collected, collect, encode_judged
from featherweight.guard.scoring import Scoring
from featherweight.guard.splits import Rows, refuse_leakage, split_rows
from featherweight.guard.storage import GuardFiles
from featherweight.guard.text_features import bow_features
from featherweight.guard.verdict import predict_costs
from featherweight.report import Report

TIERS = (*READ_AT, "cascade")
LEAST, FEW = 25, 100
"""Prompts of a class that are needed, and below which a warning says so."""
NEXT_TOKEN_FEATURES = 50
EARLY_DIFFERENCES = 0.005
"""For so many of the rows, a request that the full probe flags may be cleared before."""
PromptSource = str | Path | Sequence[Any]


def calibrate(
    model: Any,
    tokenizer: Any,
    *,
    harmful: PromptSource,
    benign: PromptSource,
    borderline: PromptSource | None = None,
    tier: str = "probe_hidden",
    target_fpr: float = 0.01,
    confidence: float | None = None,
    prefix: str = "auto",
    preamble_text: str = "",
    probe_tokens: int = 12,
    text_classifier: str = "bow",
    on_flag: str = "message",
    refusal_text: str = REFUSAL,
    grouped: bool = False,
    frames: bool = True,
    seed: int = 0,
    batch_size: int = 16,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> GuardFiles:
    """Make a guard.

    Args:
        model: a causal language model; put into evaluation mode.
        tokenizer: its own, with a chat template.
        harmful: prompts that ought to be refused: a file, or a list of texts or conversations.
        benign: ordinary prompts; the promise holds for requests like these.
        borderline: prompts that look like the harmful ones and are allowed; without them they are often refused.
        tier: what decides; `cascade` looks at prefix_hidden first and at probe_hidden where that is unsure.
        target_fpr: the promised rate of false alarms.
        confidence: None promises it on average over calibrations, 0.95 for 95 of 100 of them.
        prefix: the forced opening; auto tries several.
        preamble_text: stands between prompt and prefix, such as the end of a block of thoughts.
        probe_tokens: tokens that the model writes after the prefix.
        text_classifier: bow or encoder, for the tier probe.
        on_flag: what a flagged request gets; see `GuardOptions`.
        refusal_text: for `on_flag: message`.
        grouped: keep rows of one category in one part, which shows what happens with categories never seen.
        frames: put a tenth of the fit into harmless frames, and measure one other frame.
        seed: of splits and frames.
        batch_size: prompts that are read together.
        progress: called with rows read so far and all rows.

    Raises:
        ConfigError: for fewer than 25 prompts of a class, a prompt in two classes, files that cannot be read, a
            tokenizer without a chat template, or a tier that must not decide alone.
    """
    _check(tier, target_fpr, confidence)
    model.eval()
    sets = [read_prompts(harmful, "harmful"), read_prompts(benign, "benign")]
    sets += [] if borderline is None else [read_prompts(borderline, "borderline")]
    _check_counts(sets)
    refuse_shared(sets)
    rows = make_rows(sets, grouped=grouped, frames=frames, seed=seed)
    base = _base_options(
        model, tokenizer, tier, prefix, preamble_text, probe_tokens, text_classifier, on_flag, refusal_text
    )
    candidates: list[Candidate] = []
    if prefix == "auto":
        base, candidates = _with_best_prefix(base, model, tokenizer, rows)
    count = _counting(progress, len(rows.messages))
    judge = Scoring(base, {}, tokenizer=tokenizer)
    collected = collect([judge], model, tokenizer, rows.messages, batch_size=batch_size, progress=count)[0]
    deciding = ("prefix_hidden", "probe_hidden") if tier == "cascade" else (tier,)
    measured = measure_tiers(judge, collected, rows, deciding)
    options = decide(base, measured, judge, collected, rows, tier, target_fpr, confidence)
    flagged = decided(options, measured, judge, collected)
    report = make_report(options, measured, flagged, rows, candidates, [one.dropped for one in sets], confidence)
    _add_costs(report, options, [encode_judged(tokenizer, one) for one in rows.messages[:50]])
    needed = {stage.tier for stage in options.stages}
    return GuardFiles(
        options,
        {name: score for name, score in judge.scores.items() if name in needed},
        judge.vocabulary if "next_token" in needed else None,
        fingerprint(model, tokenizer),
        report,
    )


def make_rows(sets: Sequence[PromptSet], *, grouped: bool, frames: bool, seed: int) -> Rows:
    """Return prompts with their parts; some of the fit stand in frames, too, and some of the test in another one."""
    rows, draw = Rows(), random.Random(seed)
    for one in sets:
        groups = [prompt.category if grouped else "" for prompt in one.prompts]
        parts = split_rows(groups, seed, one.name)
        refuse_leakage(parts, [prompt.key for prompt in one.prompts])
        for part, places in parts.items():
            for place in places:
                prompt = one.prompts[place]
                rows.add(list(prompt.messages), prompt.key, one.name, part, prompt.category)
        if not frames:
            continue
        fit = draw.sample(parts["fit"], max(1, len(parts["fit"]) // 10))
        for index, place in enumerate(fit):
            prompt = one.prompts[place]
            message = framed(prompt.messages, FIT_FRAMES[index % len(FIT_FRAMES)], draw)
            rows.add(message, prompt.key, one.name, "fit", prompt.category)
        for place in parts["test"][:40]:
            prompt = one.prompts[place]
            rows.add(framed(prompt.messages, REPORT_FRAME, draw), prompt.key, one.name, "framed", prompt.category)
    return rows


def measure_tiers(judge: Scoring, collected: Collected, rows: Rows, deciding: Sequence[str]) -> dict[str, Measured]:
    """Fit every tier and score all rows: those of the fit by folds that had not seen them.

    Args:
        judge: gets the fitted scores.
        collected: what was read of the rows.
        rows: with labels and parts.
        deciding: tiers whose penalty is chosen with care; the others are for the table.
    """
    labels = torch.tensor([int(kind == "harmful") for kind in rows.kinds])
    fit = torch.tensor([part == "fit" for part in rows.parts])
    # A row and the same row in a frame are never in two folds.
    groups = [key for key, part in zip(rows.keys, rows.parts, strict=True) if part == "fit"]
    judge.vocabulary = likeliest(collected.evidence.next_ids, NEXT_TOKEN_FEATURES)
    measured = {}
    for tier in READ_AT:
        strengths = STRENGTHS if tier in deciding else USUAL
        features = judge.features(tier, collected.evidence)
        judge.scores[tier], measured[tier] = _measured(features, labels, fit, groups, strengths)
    texts = ["\n".join(str(one.get("content") or "") for one in message) for message in rows.messages]
    _, measured["prompt words alone"] = _measured(bow_features(texts), labels, fit, groups, USUAL)
    return measured


def decide(
    base: GuardOptions,
    measured: Mapping[str, Measured],
    judge: Scoring,
    collected: Collected,
    rows: Rows,
    tier: str,
    target_fpr: float,
    confidence: float | None,
) -> GuardOptions:
    """Return the settings with thresholds: the promise for the deciding stage, and where earlier looks are enough."""
    last = "probe_hidden" if tier == "cascade" else tier
    benign = rows.where("calibrate", "benign")
    # Every way to be flagged takes its part of the promised rate; clearing early can only lower it.
    share = 0.75 if tier == "cascade" else 1.0
    threshold = conformal_threshold(measured[last].scores[benign], share * target_fpr, confidence)
    if math.isinf(threshold):
        needed = math.ceil(1 / (share * target_fpr)) - 1
        warnings.warn(
            f"guard calibrate: {int(benign.sum())} benign prompts set the threshold, too few to promise "
            f"target_fpr={target_fpr}; nothing will be flagged. Give at least {5 * needed} benign prompts.",
            stacklevel=3,
        )
    stages: list[dict[str, Any]] = []
    known = rows.where("fit", "harmful", "benign", "borderline") | rows.where(
        "calibrate", "harmful", "benign", "borderline"
    )
    final = measured[last].scores > threshold
    if tier == "cascade":
        first = measured["prefix_hidden"]
        limit = conformal_threshold(first.scores[benign], 0.25 * target_fpr, confidence)
        clears = None
        if holds_in_frames(first.scores, rows, conformal_threshold(first.scores[benign], target_fpr)):
            clears = clearing_limit(first.scores[known], final[known])
        stages.append({"tier": "prefix_hidden", "flag_above": _finite(limit), "clear_at_most": clears})
    stages.append({"tier": last, "flag_above": _finite(threshold)})
    early = []
    if READ_AT[last] == 2 and math.isfinite(threshold):
        for place, evidence in sorted(collected.snapshots.items()):
            if place < base.probe_tokens:
                scores = judge.score(last, evidence)
                limit_here = clearing_limit(scores[known], final[known])
                early.append({"tokens": place, "clear_at_most": limit_here})
    promised = (
        f"A fresh request like the benign ones is flagged with a probability of at most {target_fpr:.2%}, on average "
        "over calibrations."
        if confidence is None
        else f"With a confidence of {confidence:.0%}, at most {target_fpr:.2%} of requests like these are flagged."
    )
    settings = {"stages": stages, "early_exit": early, "target_fpr": target_fpr, "promise": promised}
    return GuardOptions.parse({**base.to_dict(), **settings})


def decided(options: GuardOptions, measured: Mapping[str, Measured], judge: Scoring, collected: Collected) -> Tensor:
    """Return which rows the whole guard flags, stage by stage and place by place: (N,) bool."""
    last = options.deciding
    count = len(measured[last.tier].scores)
    flagged, is_open = torch.zeros(count, dtype=torch.bool), torch.ones(count, dtype=torch.bool)

    def settle(scores: Tensor, flag_above: float | None, clear_at_most: float | None) -> None:
        above = scores > (math.inf if flag_above is None else flag_above)
        below = scores <= (-math.inf if clear_at_most is None else clear_at_most)
        flagged.logical_or_(is_open & above)
        is_open.logical_and_(~above & ~below)

    for stage in options.stages[:-1]:
        settle(measured[stage.tier].scores, stage.flag_above, stage.clear_at_most)
    for early in options.early_exit:
        if early.tokens in collected.snapshots:
            settle(judge.score(last.tier, collected.snapshots[early.tokens]), early.flag_above, early.clear_at_most)
    settle(measured[last.tier].scores, last.flag_above, None)
    return flagged


def clearing_limit(scores: Tensor, flagged: Tensor) -> float | None:
    """Return the highest score up to which at most `EARLY_DIFFERENCES` of the rows are finally flagged."""
    allowed = math.floor(EARLY_DIFFERENCES * len(flagged))
    dangerous = scores[flagged].sort().values
    if len(dangerous) <= allowed:
        return None
    below = scores[scores < dangerous[allowed]]
    return float(below.max()) if len(below) else None


def holds_in_frames(scores: Tensor, rows: Rows, threshold: float) -> bool:
    """Tell whether a tier flags harmful requests in a frame at least half as often as plain ones; then it may clear."""
    plain, dressed = scores[rows.where("test", "harmful")], scores[rows.where("framed", "harmful")]
    if not len(dressed):
        return False
    return bool((dressed > threshold).double().mean() >= 0.5 * (plain > threshold).double().mean())


def _with_best_prefix(
    base: GuardOptions, model: Any, tokenizer: Any, rows: Rows
) -> tuple[GuardOptions, list[Candidate]]:
    harmful, benign = (
        [rows.messages[row] for row in rows.where("fit", kind).nonzero().squeeze(1).tolist()]
        for kind in ("harmful", "benign")
    )
    candidates = search_prefix(base, model, tokenizer, harmful, benign, NEXT_TOKEN_FEATURES)
    best = candidates[0]
    chosen = {"prefix_text": best.text, "prefix_ids": best.ids, "shows_prefix": best.is_refusal}
    return GuardOptions.parse({**base.to_dict(), **chosen}), candidates


def _counting(progress: Callable[[int, int], None], total: int) -> Callable[[int], None]:
    done = 0

    def count(number: int) -> None:
        nonlocal done
        done += number
        progress(done, total)

    return count


def _measured(
    features: Tensor, labels: Tensor, fit: Tensor, groups: list[str], strengths: Sequence[float]
) -> tuple[Linear, Measured]:
    score, held_out = fit_linear(features[fit].cpu(), labels[fit], groups, strengths=strengths)
    scores = score(features.cpu())
    scores[fit] = held_out
    return score, Measured(scores)


def _finite(limit: float) -> float | None:
    return None if math.isinf(limit) else limit


def _base_options(
    model: Any,
    tokenizer: Any,
    tier: str,
    prefix: str,
    preamble: str,
    probe_tokens: int,
    text_classifier: str,
    on_flag: str,
    refusal_text: str,
) -> GuardOptions:
    text = FALLBACK if prefix == "auto" else prefix
    preamble_ids, ids = prefix_ids(tokenizer, text, preamble=preamble)
    settings = {
        "prefix_text": text,
        "prefix_ids": ids,
        "preamble_text": preamble,
        "preamble_ids": preamble_ids,
        "shows_prefix": text != TOPIC,
        "probe_tokens": probe_tokens,
        "layers": default_layers(model.config.get_text_config().num_hidden_layers),
        "stages": [{"tier": "probe_hidden" if tier == "cascade" else tier}],
        "text_classifier": text_classifier,
        "on_flag": on_flag,
        "refusal_text": refusal_text,
    }
    return GuardOptions.parse(settings, where="guard calibrate")


def _check(tier: str, target_fpr: float, confidence: float | None) -> None:
    if tier not in TIERS:
        raise ConfigError(
            f"guard calibrate: tier={tier!r} is unknown; expected one of {', '.join(TIERS)}. "
            f"{did_you_mean(tier, TIERS)}"
        )
    if tier in FLAG_ONLY:
        raise ConfigError(
            f"guard calibrate: tier={tier} looks at what a bypass makes look safest, so it may not clear a request; "
            "expected prefix_hidden, next_token, probe, probe_hidden or cascade. Choose one of them."
        )
    for name, value in (("target_fpr", target_fpr), ("confidence", confidence)):
        if value is not None and not 0 < value < 1:
            raise ConfigError(f"guard calibrate: {name}={value} is no share; expected 0 < {name} < 1. Write 0.01.")


def _check_counts(sets: Sequence[PromptSet]) -> None:
    for one in sets:
        if len(one) < LEAST:
            raise ConfigError(
                f"guard calibrate: {one.name}={len(one)} different prompts are too few; expected {LEAST} or more, 100 "
                "for a threshold to trust. Add prompts."
            )
        if len(one) < FEW:
            warnings.warn(
                f"guard calibrate: {one.name}={len(one)} prompts make a rough threshold; give {FEW} or more.",
                stacklevel=3,
            )
    if len(sets) < 3:
        warnings.warn(
            "guard calibrate: no borderline prompts; what looks like the harmful ones and is allowed will often be "
            "refused. Give some with borderline= (--borderline).",
            stacklevel=3,
        )


def _add_costs(report: Report, options: GuardOptions, encoded: list[list[int]]) -> None:
    prompt = round(sum(len(one) for one in encoded) / len(encoded))
    probe = options.probe_tokens if READ_AT[options.deciding.tier] == 2 else 0
    table = []
    for answer in (32, 128, 512):
        for parallel in (False, True) if probe else (False,):
            one = predict_costs(prompt, len(options.forced_ids), probe, answer, parallel=parallel)
            share = one.extra_forwards / one.unguarded_forwards
            way = "beside the answer" if parallel else "before the answer"
            table.append([answer, way, one.unguarded_forwards, one.extra_forwards, 100 * share, one.extra_steps])
    columns = ["answer tokens", "probe", "token-forwards", "added", "added (%)", "added steps"]
    report.add_table(f"Cost of a request of {prompt} tokens that passes", columns, table)
