"""How long each phase of a guarded request takes, request by request, on the machine of the calibration."""

import time
from collections.abc import Sequence
from itertools import islice
from typing import Any

import torch

from featherweight.guard.decoding import AnswerRules, answers, judge_prompts
from featherweight.guard.options import READ_AT
from featherweight.guard.probe import Judge, Jury
from featherweight.guard.reading import encode_judged
from featherweight.report import Report

STEPS = 8
"""Tokens of an answer whose time is taken."""
PHASES = {"prefill": "prompt", "probe": "prefix and probe", "classify": "classifier"}


def measure_latency(judge: Jury, model: Any, tokenizer: Any, prompts: Sequence[Any]) -> dict[str, list[float]]:
    """Return the seconds of each phase for prompts that are judged and answered one by one.

    Args:
        judge: a guard.
        model: in evaluation mode.
        tokenizer: its own.
        prompts: conversations; the first one is run once more before, to warm up.

    Returns:
        prefill, probe, classify and first_token for each prompt; `step` for each of those that pass: a token of an
        answer, on average.
    """
    found: dict[str, list[float]] = {name: [] for name in (*PHASES, "first_token", "step")}
    rules = AnswerRules(max_new_tokens=STEPS + 1)
    for place, prompt in enumerate([*prompts[:1], *prompts]):
        ids = torch.tensor([encode_judged(tokenizer, prompt)])
        judged = judge_prompts(judge, model, ids, None, rules)
        if place == 0:
            continue
        for name in PHASES:
            found[name].append(judged.seconds.get(name, 0.0))
        found["first_token"].append(sum(judged.seconds.values()))
        tokens = answers(judged, rules)
        next(tokens, None)
        begin = time.perf_counter()
        count = len(list(islice(tokens, STEPS)))
        if count:
            found["step"].append((time.perf_counter() - begin) / count)
    return found


def add_latency(report: Report, judge: Jury, model: Any, tokenizer: Any, prompts: Sequence[Any]) -> None:
    """Add a table of the phases, and what was added until the first token beside what the number of steps predicts."""
    if not prompts:
        return
    found = measure_latency(judge, model, tokenizer, prompts)
    named = {**{PHASES[name]: found[name] for name in PHASES}, "until the first token": found["first_token"]}
    named["first token without a guard"] = found["prefill"]
    if found["step"]:
        named["a further token of an answer"] = found["step"]
    table = [[name, len(values), *(1000 * one for one in _quantiles(values))] for name, values in named.items()]
    report.add_table("Latency, one request at a time", ["phase", "requests", "median (ms)", "95 % (ms)"], table)
    if found["step"]:
        step = _quantiles(found["step"])[0]
        added = _quantiles([probe + rest for probe, rest in zip(found["probe"], found["classify"], strict=True)])[0]
        report.add_facts(
            {
                "measured (ms)": 1000 * added,
                "in tokens of an answer": added / step,
                "forward passes of a probe that is read to its end": _steps(judge),
            },
            "Added until the first token",
        )


def _steps(judge: Judge) -> int:
    reads = READ_AT[judge.options.deciding.tier]
    return 0 if reads == 0 else 1 if reads == 1 else judge.options.probe_tokens


def _quantiles(values: Sequence[float]) -> tuple[float, float]:
    found = torch.tensor(values, dtype=torch.float64).quantile(torch.tensor([0.5, 0.95], dtype=torch.float64))
    return float(found[0]), float(found[1])
