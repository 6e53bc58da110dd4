"""How the monitor of answers is fitted: on answers to harmful and benign requests that begin alike.

A model that refuses would teach the monitor to recognise refusals. So every answer of the fit is given the opening with
which the model answers benign requests; what follows shows how it writes on either kind when it complies. The
threshold is split-conformal, on the highest level in free answers to benign requests that no fit has seen.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from featherweight.guard.decoding import watching
from featherweight.guard.evidence import hidden_features
from featherweight.guard.linear import Linear, fit_linear
from featherweight.guard.metrics import auroc, conformal_threshold, rate_interval
from featherweight.guard.monitor import Monitor
from featherweight.guard.options import MonitorOptions
from featherweight.guard.prompt_files import PromptSet, read_prompts, refuse_shared
from featherweight.guard.reading import all_stops, batches, left_padded
from featherweight.guard.splits import split_rows
from featherweight.models.generation import extend, generate, prefill, stream
from featherweight.report import Report

OPENING_TOKENS = 3


def fit_monitor(
    guard: Any,
    model: Any,
    tokenizer: Any,
    *,
    harmful: Any,
    benign: Any,
    target_fpr: float = 0.01,
    answer_tokens: int = 64,
    hold_back: int = 16,
    decay: float = 0.9,
    seed: int = 0,
    batch_size: int = 16,
) -> tuple[Linear, MonitorOptions, Report]:
    """Fit the score of a monitor and its threshold.

    Args:
        guard: whose layers are read.
        model: in evaluation mode.
        tokenizer: its own.
        harmful: prompts whose answers ought to be stopped: a file, or a list.
        benign: ordinary prompts.
        target_fpr: the promised rate of answers to benign prompts that are stopped.
        answer_tokens: the promise holds for answers up to this length.
        hold_back: so many of the newest tokens wait.
        decay: of the running mean of scores.
        seed: of the parts of the data.
        batch_size: prompts that are answered together.

    Returns:
        The score, the settings, and a report on rows that neither fit nor threshold have seen.

    Raises:
        ConfigError: for files that cannot be read, a prompt in both classes, or too few rows for a fit.
    """
    model.eval()
    sets = [read_prompts(harmful, "harmful"), read_prompts(benign, "benign")]
    refuse_shared(sets)
    parts = {one.name: _parts(one, seed) for one in sets}
    stops = all_stops(model, tokenizer)
    opening = _opening(model, tokenizer, parts["benign"]["fit"], stops, batch_size)
    rows = [(prompt, int(name == "harmful")) for name, part in parts.items() for prompt in part["fit"]]
    layers = guard.options.layers
    prompts = [prompt for prompt, _ in rows]
    means = _mean_states(model, tokenizer, prompts, opening, answer_tokens, stops, layers, batch_size)
    score, _ = fit_linear(means, torch.tensor([label for _, label in rows]))
    options = MonitorOptions(decay=decay, hold_back=hold_back, target_fpr=target_fpr, answer_tokens=answer_tokens)

    def highest(prompts: Sequence[Any]) -> Tensor:
        return _highest(score, options, model, tokenizer, prompts, stops, layers, batch_size)

    limit = conformal_threshold(highest(parts["benign"]["calibrate"]), target_fpr)
    options = MonitorOptions.parse({**options.to_dict(), "stop_above": None if limit == float("inf") else limit})
    report = Report("Monitor")
    found = {name: highest(part["test"]) for name, part in parts.items()}
    table = []
    for name, levels in found.items():
        hits = int((levels > limit).sum())
        low, high = rate_interval(hits, len(levels))
        table.append([name, len(levels), hits, 100 * hits / len(levels), 100 * low, 100 * high])
    columns = ["answers to", "count", "stopped", "rate (%)", "from (%)", "to (%)"]
    report.add_table(f"Monitor of answers up to {answer_tokens} tokens", columns, table)
    report.add_facts({"AUROC of the highest level": auroc(found["harmful"], found["benign"])}, "Monitor")
    return score, options, report


def _parts(one: PromptSet, seed: int) -> dict[str, list[Any]]:
    places = split_rows([""] * len(one), seed, one.name)
    return {part: [list(one.prompts[row].messages) for row in rows] for part, rows in places.items()}


def _opening(model: Any, tokenizer: Any, prompts: Sequence[Any], stops: Sequence[int], batch_size: int) -> list[int]:
    """Return how the model most often begins its answers."""
    counted: Counter[tuple[int, ...]] = Counter()
    for _, rows in batches(tokenizer, prompts[: 4 * batch_size], batch_size):
        replies = generate(prefill(model, *left_padded(rows)), max_new_tokens=OPENING_TOKENS, stop_token_ids=stops)
        counted.update(tuple(reply) for reply in replies.tolist() if not set(reply) & set(stops))
    return list(counted.most_common(1)[0][0]) if counted else []


def _mean_states(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Any],
    opening: list[int],
    answer_tokens: int,
    stops: Sequence[int],
    layers: tuple[int, ...],
    batch_size: int,
) -> Tensor:
    """Return the mean hidden states of answers with a given opening: (N, H)."""
    found: dict[int, Tensor] = {}
    ends = torch.tensor(sorted(stops))
    for places, rows in batches(tokenizer, prompts, batch_size):
        decoding = prefill(model, *left_padded(rows))
        if opening:
            extend(decoding, torch.tensor(opening), output_hidden_states=True)
        total, count = torch.zeros(()), torch.zeros(len(rows), 1)
        is_open, before = torch.ones(len(rows), dtype=torch.bool), decoding.length
        for tokens in stream(decoding, max_new_tokens=answer_tokens, stop_token_ids=stops, output_hidden_states=True):
            if decoding.length > before and decoding.hidden_states is not None:
                states = hidden_features(decoding.hidden_states, layers).cpu()
                total = total + states * is_open[:, None]
                count += is_open[:, None]
            is_open &= ~torch.isin(tokens.cpu(), ends)
        means = total / count.clamp(min=1)
        found |= dict(zip(places, means, strict=True))
    return torch.stack([found[place] for place in range(len(prompts))])


def _highest(
    score: Linear,
    options: MonitorOptions,
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Any],
    stops: Sequence[int],
    layers: tuple[int, ...],
    batch_size: int,
) -> Tensor:
    """Return the highest level of the monitor in free answers: (N,)."""
    found: dict[int, float] = {}
    for places, rows in batches(tokenizer, prompts, batch_size):
        decoding = prefill(model, *left_padded(rows))
        monitor = Monitor(score, options, layers, len(rows))
        generate(
            decoding,
            max_new_tokens=options.answer_tokens,
            stop_token_ids=stops,
            criteria=[watching(monitor, decoding, list(range(len(rows))), stops)],
            output_hidden_states=True,
        )
        found |= dict(zip(places, monitor.highest.tolist(), strict=True))
    return torch.tensor([found[place] for place in range(len(prompts))])
