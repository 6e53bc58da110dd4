"""How a guard does on labelled prompts that its calibration has not seen."""

from typing import Any

import torch

from featherweight.guard.calibration import PromptSource
from featherweight.guard.ensemble import GuardEnsemble
from featherweight.guard.guard import PrefixGuard
from featherweight.guard.metrics import rate_interval
from featherweight.guard.prompt_files import read_prompts, refuse_shared
from featherweight.guard.quality import add_quality
from featherweight.report import Report


def evaluate_guard(
    guard: PrefixGuard | GuardEnsemble,
    model: Any,
    tokenizer: Any,
    *,
    harmful: PromptSource,
    benign: PromptSource,
    borderline: PromptSource | None = None,
    batch_size: int = 16,
) -> Report:
    """Return rates with intervals.

    Args:
        guard: or an ensemble, bound to the model.
        model: in evaluation mode.
        tokenizer: its own.
        harmful: prompts that ought to be flagged.
        benign: prompts that ought not.
        borderline: prompts that look like the former and are allowed.
        batch_size: prompts that are read together.

    Raises:
        ConfigError: for files that cannot be read, or a prompt in two classes.
    """
    sets = [read_prompts(harmful, "harmful"), read_prompts(benign, "benign")]
    sets += [] if borderline is None else [read_prompts(borderline, "borderline")]
    refuse_shared(sets)
    report, table, scores = Report("Guard on new prompts"), [], {}
    for one in sets:
        prompts = [list(prompt.messages) for prompt in one.prompts]
        verdicts = guard.judge(model, tokenizer, prompts, batch_size=batch_size)
        hits = sum(verdict.flagged for verdict in verdicts)
        low, high = rate_interval(hits, len(verdicts))
        written = sum(verdict.probe_tokens for verdict in verdicts) / len(verdicts)
        errors = sum(verdict.error is not None for verdict in verdicts)
        rate = 100 * hits / len(verdicts)
        table.append([one.name, len(verdicts), hits, rate, 100 * low, 100 * high, written, errors])
        finite = [verdict for verdict in verdicts if verdict.tier == guard.options.deciding.tier and not verdict.error]
        scores[one.name] = torch.tensor([verdict.score for verdict in finite])
    columns = ["rows", "count", "flagged", "rate (%)", "from (%)", "to (%)", "probe tokens (mean)", "not judged"]
    report.add_table("Flagged", columns, table)
    stage = guard.options.deciding
    # Scores of earlier stages are on scales of their own, so only a guard of one stage has curves.
    if (
        len(guard.members) == len(guard.options.stages) == 1
        and stage.flag_above is not None
        and len(scores["harmful"])
        and len(scores["benign"])
    ):
        add_quality(report, scores["harmful"], scores["benign"], stage)
    return report
