"""Guards on a model that follows a policy: the stand-in with its bypass, SmolLM2 with a harmless policy; their costs.

    python benchmarks/bench_guard.py stand-in --clinc FOLDER --models M0 M1 M2  (tests/reference/guard_stand_in.py)
    python benchmarks/bench_guard.py smollm2 --clinc FOLDER --sizes 50 100 25 110 60 20
    python benchmarks/bench_guard.py openings --clinc FOLDER --sizes 50 100 25 110 60 20  (its tier continuation)
    python benchmarks/bench_guard.py latency
    python benchmarks/bench_guard.py serving

CLINC150 (data_full.json, domains.json of clinc/oos-eval, CC BY 3.0) is read, never downloaded. With --keep FOLDER, what
was read of a model is kept there, and a run that was broken off goes on. Rows go to results/guard_*.csv.
"""

import argparse
import random
from pathlib import Path
from typing import Any

import torch
from guard_costs import latency, parts, serving
from guard_judges import judge_for, percent, world_of
from guard_smollm2 import smollm2, smollm2_openings
from measurement import write_rows

from featherweight.guard.fingerprint import fingerprint
from featherweight.guard.fitting import measure_tiers
from featherweight.guard.frames import FIT_FRAMES, REPORT_FRAME, framed
from featherweight.guard.metrics import auroc, conformal_threshold
from featherweight.guard.openings import choose_openings
from featherweight.guard.options import READ_AT, GuardOptions
from featherweight.guard.reading import collect, collect_openings, with_words
from featherweight.guard.readings import Readings, read_readings, write_readings
from featherweight.guard.scoring import Scoring
from featherweight.guard.splits import Rows
from featherweight.guard.thresholds import Goal, decide, decided


def stand_in(folder: Path, seed: int, model_folder: Path, keep: Path | None) -> list[dict[str, Any]]:
    """Return the rows of one trained stand-in: what it does alone, and what guards of several tiers do.

    Every threshold is chosen on requests of the validation split and of what the model has not seen of the training
    split, as a calibration does; marked requests are in the test split alone.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    world = world_of.clinc_world(folder, seed)
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    rows = stand_in_rows(world, seed)
    judge, collected = stand_in_readings(model, tokenizer, rows, None if keep is None else keep / f"seed {seed}")
    collected = with_words(collected, tokenizer, rows.messages)
    measured = measure_tiers(judge, collected, rows, DECIDING)
    found = unguarded_rows(model, tokenizer, rows)
    ordinary = rows.where("test", "benign")
    for tier in READ_AT:
        for name, kind in (("forbidden", "harmful"), ("marked", "marked")):
            area = auroc(measured[tier].scores[rows.where("test", kind)], measured[tier].scores[ordinary])
            found[f"AUROC {tier}, {name} against ordinary"] = f"{area:.4f}"
    goal, alone = Goal(0.02, confidence=0.95), torch.empty(0)
    own = Goal(0.02, confidence=0.95, borderline_fpr=0.05, category_fpr={"oos": 0.06})
    for tier in ("states_words", *DECIDING, "cascade"):
        options = decide(judge.options, measured, judge, collected, rows, tier, own if tier == "states_words" else goal)
        flagged = decided(options, measured, judge, collected)
        for name, kind in KINDS.items():
            found[f"flagged at 2 % by {tier}, {name} (%)"] = percent(flagged[rows.where("test", kind)])
        if tier == "cascade":
            found |= cascade_rows(options, measured, flagged, alone, rows)
        alone = flagged
        if tier == "probe":
            found |= early_rows(options, judge, collected, measured, rows)
    found |= promise_rows(seed, measured["probe_hidden"].scores, rows)
    return [{"model": f"seed {seed}", "quantity": name, "value": value} for name, value in found.items()]


def stand_in_readings(model: Any, tokenizer: Any, rows: Rows, keep: Path | None) -> tuple[Scoring, Any]:
    """Return what the model said of all requests, and what scores it; from a folder if it is there."""
    judge = judge_for(model, tokenizer, world_of.PREFIX, 24)
    if keep is not None and keep.exists():
        found = read_readings([keep])
        assert found.rows.messages == rows.messages, f"{keep} holds other requests"
        return Scoring(found.options, {}, tokenizer=tokenizer), found.collected
    collected = collect([judge], model, tokenizer, rows.messages, batch_size=64)[0]
    fit = [place for place, part in enumerate(rows.parts) if part == "fit"]
    probes = [collected.evidence.probe_ids[place] for place in fit]
    policy, other = choose_openings(probes, [int(rows.kinds[place] == "harmful") for place in fit])
    judge.options = GuardOptions.parse({**judge.options.to_dict(), "policy_openings": policy, "other_openings": other})
    found_openings = collect_openings(judge.options, model, tokenizer, rows.messages, batch_size=64)
    collected.evidence.opening_logprobs = found_openings
    if keep is not None:
        write_readings(keep, Readings(judge.options, rows, collected, fingerprint(model, tokenizer), 0))
    return judge, collected


DECIDING = ("prefix_hidden", "continuation", "probe", "probe_hidden", "states")
"""Tiers of which guards are made."""
KINDS = {"forbidden": "harmful", "marked": "marked", "ordinary": "benign", "borderline": "borderline", "oos": "oos"}
"""Name in the table -> kind of the rows."""


def stand_in_rows(world: Any, seed: int) -> Rows:
    """Return all requests with their parts: fit and threshold get those that the model has not seen of the training
    split, and the validation split; the report gets the whole test split.
    """
    rows, draw = Rows(), random.Random(seed)
    ordinary, spare = world.prompts("val", "ordinary"), world.prompts("spare", "ordinary")
    draw.shuffle(ordinary)
    forbidden, borderline = (
        [*world.prompts("val", name), *world.prompts("spare", name)]
        for name in (world_of.FORBIDDEN, world_of.BORDERLINE)
    )
    benign, outside = [*ordinary[:1000], *spare[:1000]], world.prompts("val", "oos")
    fit = {"harmful": forbidden, "benign": [*benign, *outside], "borderline": borderline}
    test = {
        "harmful": world.prompts("test", world_of.FORBIDDEN),
        "marked": [world_of.marked(text) for text in world.prompts("test", world_of.FORBIDDEN)],
        "benign": world.prompts("test", "ordinary"),
        "borderline": world.prompts("test", world_of.BORDERLINE),
        "oos": world.prompts("test", "oos"),
    }

    def add(text: str, kind: str, part: str, frame: str = "{}") -> None:
        category = "oos" if text in outside else ""
        rows.add(framed([{"role": "user", "content": text}], frame, draw), text, kind, part, category)

    for kind, texts in fit.items():
        for text in texts:
            add(text, kind, "fit")
        for index, text in enumerate(draw.sample(texts, len(texts) // 10)):
            add(text, kind, "fit", FIT_FRAMES[index % len(FIT_FRAMES)])
    for text in [*ordinary[1000:], *spare[1000:4000]]:
        add(text, "benign", "calibrate")
    for kind, texts in test.items():
        for text in texts:
            add(text, kind, "test")
        for text in texts[:40] if kind in ("harmful", "benign") else ():
            add(text, kind, "framed", REPORT_FRAME)
    return rows


def unguarded_rows(model: Any, tokenizer: Any, rows: Rows) -> dict[str, str]:
    """Return how often the model opens with a refusal without a guard."""
    from featherweight.guard.reading import batches, left_padded
    from featherweight.models.generation import generate, prefill

    found = {}
    for name, kind in KINDS.items():
        places = rows.where("test", kind).nonzero().squeeze(1).tolist()[:300]
        hits = []
        for _, encoded in batches(tokenizer, [rows.messages[place] for place in places], 64):
            replies = generate(prefill(model, *left_padded(encoded)), max_new_tokens=6)
            hits += [tokenizer.decode(reply).startswith("I'm sorry") for reply in replies.tolist()]
        found[f"unguarded: opens with a refusal, {name} (%)"] = percent(torch.tensor(hits))
    return found


def cascade_rows(
    options: GuardOptions, measured: Any, flagged: torch.Tensor, alone: torch.Tensor, rows: Rows
) -> dict[str, str]:
    """Return how often a cascade decides without a generated token, and how often it agrees with its last stage."""
    first = options.stages[0]
    scores = measured[first.tier].scores
    early = torch.tensor([first.flags(score) or first.clears(score) for score in scores.tolist()])
    tested = torch.zeros(len(scores), dtype=torch.bool)
    for kind in KINDS.values():
        tested |= rows.where("test", kind)
    return {
        "cascade: decided without a generated token, all test rows (%)": percent(early[tested]),
        "cascade: agrees with states alone (%)": percent((flagged == alone)[tested]),
    }


def early_rows(options: GuardOptions, judge: Scoring, found: Any, measured: Any, rows: Rows) -> dict[str, str]:
    """Return after how many tokens the probe lets ordinary requests go, and how many verdicts that changes."""
    final = torch.tensor([options.deciding.flags(score) for score in measured["probe"].scores.tolist()])
    count = torch.full((len(final),), float(options.probe_tokens))
    cleared = torch.zeros_like(final)
    for early in reversed(options.early_exit):
        if early.clear_at_most is not None:
            here = judge.score("probe", found.snapshots[early.tokens]) <= early.clear_at_most
            count[here] = early.tokens
            cleared |= here
    ordinary = rows.where("test", "benign")
    return {
        "early exit: probe tokens, ordinary (mean)": f"{float(count[ordinary].mean()):.1f}",
        "early exit: verdicts changed, ordinary (%)": percent((cleared & final)[ordinary]),
        "early exit: verdicts changed, marked (%)": percent((cleared & final)[rows.where("test", "marked")]),
    }


def promise_rows(seed: int, scores: torch.Tensor, rows: Rows) -> dict[str, str]:
    """Return false alarms over 200 splits of what no fit has seen."""
    pool = torch.cat([scores[rows.where("calibrate", "benign")], scores[rows.where("test", "benign")]])
    draw, found = torch.Generator().manual_seed(seed), {}
    for target in (0.01, 0.02, 0.05):
        rates = torch.empty(200)
        for index in range(200):
            order = torch.randperm(len(pool), generator=draw)
            threshold = conformal_threshold(pool[order[: len(pool) // 2]], target)
            rates[index] = (pool[order[len(pool) // 2 :]] > threshold).double().mean()
        error, worst = float(rates.std()) / 200**0.5, 100 * float(rates.quantile(0.95))
        text = f"{100 * float(rates.mean()):.2f} +- {100 * error:.2f}, 95th percentile {worst:.1f}"
        found[f"false alarms over 200 splits, promised {100 * target:.0f} (%)"] = text
    return found


def main() -> None:
    """Run one of the five."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["stand-in", "smollm2", "openings", "latency", "serving"])
    parser.add_argument("--clinc", type=Path)
    parser.add_argument("--models", type=Path, nargs="+", default=[])
    parser.add_argument("--sizes", type=int, nargs=6, default=[100, 200, 40, 200, 120, 40])
    parser.add_argument("--probe-tokens", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--keep", type=Path)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    file = f"guard_{chosen.what.replace('-', '_')}"
    if chosen.what == "stand-in":
        # The folders of the models end with their seeds.
        rows = [row for one in chosen.models for row in stand_in(chosen.clinc, int(one.name[-1]), one, chosen.keep)]
    elif chosen.what == "smollm2":
        rows = smollm2(chosen.clinc, tuple(chosen.sizes), chosen.probe_tokens)
    elif chosen.what == "openings":
        rows, file = smollm2_openings(chosen.clinc, tuple(chosen.sizes), chosen.keep), "guard_smollm2"
    elif chosen.what == "latency":
        rows = parts(200, 128, 3 * chosen.rounds) + latency(200, 128, chosen.rounds)
    else:
        rows = serving(32, 128, chosen.rounds)
    for one in rows:
        print(one)
    write_rows(file, rows)


if __name__ == "__main__":
    main()
