"""How a guard is made from prompts with labels: fit, threshold with a promise, and an honest report.

Rows for the fit, for the threshold and for the report never mix. What ought to be refused is what the caller's files
say; nothing here knows a topic.
Source: Prefix Guidance, arXiv 2408.08924; thresholds by split-conformal prediction.
"""

import random
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from featherweight.errors import ConfigError, did_you_mean
from featherweight.guard.evidence import Evidence
from featherweight.guard.fingerprint import fingerprint
from featherweight.guard.fitting import NEXT_TOKEN_FEATURES, PARTS, measure_tiers
from featherweight.guard.frames import FIT_FRAMES, REPORT_FRAME, framed
from featherweight.guard.latency import add_latency
from featherweight.guard.openings import choose_openings
from featherweight.guard.options import FLAG_ONLY, READ_AT, REFUSAL, GuardOptions, default_layers, default_prefix_states
from featherweight.guard.prefix import prefix_ids
from featherweight.guard.prefix_search import FALLBACK, TOPICS, Candidate, search_prefix, with_prefix
from featherweight.guard.prompt_files import PromptSet, read_prompts, refuse_shared
from featherweight.guard.quality import make_report
from featherweight.guard.reading import collect, collect_openings, encode_judged, with_words
from featherweight.guard.readings import Readings, write_readings
from featherweight.guard.scoring import Scoring, TextFunction
from featherweight.guard.splits import Rows, refuse_leakage, split_rows
from featherweight.guard.storage import GuardFiles
from featherweight.guard.thresholds import CASCADE, Goal, decide, decided
from featherweight.guard.verdict import predict_costs
from featherweight.report import Report

TIERS = (*READ_AT, "cascade")
LEAST, FEW = 25, 100
"""Prompts of a class that are needed, and below which a warning says so."""
TIMED = 16
"""Requests whose phases are timed for the report."""
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
    target_tpr: float | None = None,
    cost_ratio: float | None = None,
    confidence: float | None = None,
    borderline_fpr: float | None = None,
    category_fpr: Mapping[str, float] | None = None,
    prefix: str = "auto",
    preamble_text: str = "",
    probe_tokens: int = 12,
    text_classifier: str = "bow",
    text_function: TextFunction | None = None,
    on_flag: str = "message",
    refusal_text: str = REFUSAL,
    grouped: bool = False,
    frames: bool = True,
    seed: int = 0,
    batch_size: int = 16,
    keep_readings: str | Path | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> GuardFiles:
    """Make a guard.

    Args:
        model: a causal language model; put into evaluation mode.
        tokenizer: its own, with a chat template.
        harmful: prompts that ought to be refused: a file, or a list of texts or conversations.
        benign: ordinary prompts; the promise holds for requests like these.
        borderline: prompts that look like the harmful ones and are allowed; without them they are often refused.
        tier: what decides; `cascade` looks at prefix_hidden first and at states where that is unsure.
        target_fpr: the promised rate of false alarms.
        target_tpr: promise this rate of flagged harmful requests instead.
        cost_ratio: take the threshold of least cost instead, a harmful request that passes being as bad as so many
            false alarms.
        confidence: None promises it on average over calibrations, 0.95 for 95 of 100 of them.
        borderline_fpr: a promised rate of their own for borderline requests.
        category_fpr: the same for categories of the benign ones: category -> rate.
        prefix: the forced opening; auto tries several.
        preamble_text: stands between prompt and prefix, such as the end of a block of thoughts.
        probe_tokens: tokens that the model writes after the prefix.
        text_classifier: bow, encoder or finetune, for the tier probe.
        text_function: takes texts, returns numbers, instead of those.
        on_flag: what a flagged request gets; see `GuardOptions`.
        refusal_text: for `on_flag: message`.
        grouped: keep rows of one category in one part, which shows what happens with categories never seen.
        frames: put a tenth of the fit into harmless frames, and measure one other frame.
        seed: of splits and frames.
        batch_size: prompts that are read together.
        keep_readings: a folder for what the model said, from which `PrefixGuard.refit` fits again without it.
        progress: called with rows read so far and all rows.

    Raises:
        ConfigError: for fewer than 25 prompts of a class, a prompt in two classes, files that cannot be read, a
            tokenizer without a chat template, or a tier that must not decide alone.
    """
    goal = Goal(target_fpr, target_tpr, cost_ratio, confidence, borderline_fpr, category_fpr or {})
    _check(tier)
    goal.check()
    model.eval()
    sets = read_sets(harmful, benign, borderline)
    rows = make_rows(sets, grouped=grouped, frames=frames, seed=seed)
    words = text_classifier if text_function is None else "custom"
    base = _base_options(model, tokenizer, tier, prefix, preamble_text, probe_tokens, words, on_flag, refusal_text)
    readings = _read_all(base, model, tokenizer, rows, tier, prefix == "auto", batch_size, progress)
    readings = replace(readings, dropped=sum(one.dropped for one in sets))
    if keep_readings is not None:
        write_readings(Path(keep_readings).expanduser(), readings)
    files = fit_guard(readings, tokenizer, tier=tier, goal=goal, text_function=text_function)
    _time_phases(files, model, tokenizer, rows)
    return files


def fit_guard(
    readings: Readings,
    tokenizer: Any,
    *,
    tier: str,
    goal: Goal,
    text_classifier: str | None = None,
    text_base: str | None = None,
    text_function: TextFunction | None = None,
) -> GuardFiles:
    """Make a guard of what a model said of labelled prompts; the model itself is not needed.

    Args:
        readings: of all prompts.
        tokenizer: of the model; the tiers of words read by it.
        tier: what decides.
        goal: of the threshold.
        text_classifier: bow, encoder or finetune; None takes that of the readings.
        text_base: folder of the model that finetune starts from; None takes MiniLM.
        text_function: takes texts, returns numbers; for custom.

    Raises:
        ConfigError: for a tier that must not decide alone, a goal that is none, or too few rows of a class.
    """
    _check(tier)
    goal.check()
    rows, collected = readings.rows, with_words(readings.collected, tokenizer, readings.rows.messages)
    base = GuardOptions.parse(
        {
            **readings.options.to_dict(),
            "stages": _asked_for(readings, last_tier(tier)),
            "early_exit": [],
            "text_classifier": text_classifier or readings.options.text_classifier,
        },
        where="guard calibrate",
    )
    judge = Scoring(base, {}, tokenizer=tokenizer, classifier=text_function)
    deciding = PARTS if last_tier(tier) in ("states", "states_words") else (tier,)
    measured = measure_tiers(judge, collected, rows, deciding, text_base=text_base)
    options = decide(base, measured, judge, collected, rows, tier, goal)
    flagged = decided(options, measured, judge, collected)
    report = make_report(options, measured, flagged, rows, readings.candidates, [readings.dropped], goal.confidence)
    _add_costs(report, options, readings.prompt_tokens)
    needed = {stage.tier for stage in options.stages}
    return GuardFiles(
        options,
        {name: score for name, score in judge.scores.items() if name in needed},
        judge.vocabulary if "next_token" in needed else None,
        readings.fingerprints,
        report,
        judge.classifier if "probe" in needed else None,
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


def read_sets(harmful: PromptSource, benign: PromptSource, borderline: PromptSource | None) -> list[PromptSet]:
    """Return the prompts of each class, each once.

    Raises:
        ConfigError: for fewer than 25 of a class, or a prompt in two of them.
    """
    sets = [read_prompts(harmful, "harmful"), read_prompts(benign, "benign")]
    sets += [] if borderline is None else [read_prompts(borderline, "borderline")]
    _check_counts(sets)
    refuse_shared(sets)
    return sets


def _mean_tokens(tokenizer: Any, rows: Rows) -> int:
    encoded = [encode_judged(tokenizer, one) for one in rows.messages[:50]]
    return round(sum(len(one) for one in encoded) / len(encoded))


def _time_phases(files: GuardFiles, model: Any, tokenizer: Any, rows: Rows) -> None:
    assert files.report is not None
    timed = [rows.messages[row] for row in rows.where("test", "benign").nonzero().squeeze(1).tolist()[:TIMED]]
    scoring = Scoring(files.options, files.scores, files.vocabulary, tokenizer, files.classifier)
    add_latency(files.report, scoring, model, tokenizer, timed)


def last_tier(tier: str) -> str:
    """Return what decides at last."""
    return CASCADE[-1] if tier == "cascade" else tier


def _read_all(
    base: GuardOptions,
    model: Any,
    tokenizer: Any,
    rows: Rows,
    tier: str,
    searches: bool,
    batch_size: int,
    progress: Callable[[int, int], None],
) -> Readings:
    """Return all that the tiers look at, of every prompt, behind the given prefix or the best one."""
    candidates: list[Candidate] = []
    if searches:
        base, candidates = _with_best_prefix(base, model, tokenizer, rows)
    count, judges = _counting(progress, len(rows.messages)), [Scoring(base, {}, tokenizer=tokenizer)]
    (collected,) = collect(judges, model, tokenizer, rows.messages, batch_size=batch_size, progress=count)
    if tier == "continuation":
        base = _with_openings(base, collected.evidence, rows)
        found = collect_openings(base, model, tokenizer, rows.messages, batch_size=batch_size)
        collected.evidence.opening_logprobs = found
    marks = fingerprint(model, tokenizer)
    return Readings(base, rows, collected, marks, _mean_tokens(tokenizer, rows), candidates)


def _with_openings(base: GuardOptions, evidence: Evidence, rows: Rows) -> GuardOptions:
    """Return the settings with the openings that the probes of the fit begin with."""
    fit = [place for place, part in enumerate(rows.parts) if part == "fit"]
    labels = [int(rows.kinds[place] == "harmful") for place in fit]
    policy, other = choose_openings([evidence.probe_ids[place] for place in fit], labels)
    chosen = {"policy_openings": policy, "other_openings": other, "stages": [{"tier": "continuation"}]}
    return GuardOptions.parse({**base.to_dict(), **chosen}, where="guard calibrate")


def _asked_for(readings: Readings, tier: str) -> list[dict[str, str]]:
    """Return the one stage that a fit begins with.

    Raises:
        ConfigError: if it compares openings, which were not read.
    """
    if tier == "continuation" and readings.collected.evidence.opening_logprobs is None:
        raise ConfigError(
            "guard refit: tier=continuation compares openings, and these readings hold none; expected those of a "
            "calibration with that tier. Run fw guard calibrate --tier continuation --keep-readings DIR."
        )
    return [{"tier": tier}]


def _with_best_prefix(
    base: GuardOptions, model: Any, tokenizer: Any, rows: Rows
) -> tuple[GuardOptions, list[Candidate]]:
    harmful, benign = (
        [rows.messages[row] for row in rows.where("fit", kind).nonzero().squeeze(1).tolist()]
        for kind in ("harmful", "benign")
    )
    candidates = search_prefix(base, model, tokenizer, harmful, benign, NEXT_TOKEN_FEATURES)
    best = candidates[0]
    return with_prefix(base, best.text, best.ids, best.is_refusal), candidates


def _counting(progress: Callable[[int, int], None], total: int) -> Callable[[int], None]:
    done = 0

    def count(number: int) -> None:
        nonlocal done
        done += number
        progress(done, total)

    return count


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
        "shows_prefix": text not in TOPICS,
        "probe_tokens": probe_tokens,
        "layers": default_layers(model.config.get_text_config().num_hidden_layers),
        "prefix_states": default_prefix_states(ids),
        # Openings are chosen when the probes were read; until then their words stand for them.
        "stages": [{"tier": "probe" if tier == "continuation" else last_tier(tier)}],
        "text_classifier": text_classifier,
        "on_flag": on_flag,
        "refusal_text": refusal_text,
    }
    return GuardOptions.parse(settings, where="guard calibrate")


def _check(tier: str) -> None:
    if tier not in TIERS:
        raise ConfigError(
            f"guard calibrate: tier={tier!r} is unknown; expected one of {', '.join(TIERS)}. "
            f"{did_you_mean(tier, TIERS)}"
        )
    if tier in FLAG_ONLY:
        raise ConfigError(
            f"guard calibrate: tier={tier} looks at what a bypass makes look safest, so it may not clear a request; "
            "expected prefix_hidden, next_token, continuation, probe, probe_hidden, states, states_words or cascade. "
            "Take one."
        )


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


def _add_costs(report: Report, options: GuardOptions, prompt: int) -> None:
    probe = options.probe_tokens if READ_AT[options.deciding.tier] == 2 else 0
    openings = (len(options.openings), len(options.openings[0])) if options.needs_openings else (0, 0)
    table = []
    for answer in (32, 128, 512):
        for parallel in (False, True) if probe else (False,):
            one = predict_costs(prompt, len(options.forced_ids), probe, answer, parallel=parallel, openings=openings)
            share = one.extra_forwards / one.unguarded_forwards
            way = "beside the answer" if parallel else "before the answer"
            table.append([answer, way, one.unguarded_forwards, one.extra_forwards, 100 * share, one.extra_steps])
    columns = ["answer tokens", "probe", "token-forwards", "added", "added (%)", "added steps"]
    report.add_table(f"Cost of a request of {prompt} tokens that passes", columns, table)
