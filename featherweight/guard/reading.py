"""Many prompts through a model, in batches: their evidence for calibration, or their verdicts."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from featherweight.errors import ConfigError
from featherweight.guard.decoding import AnswerRules, judge_prompts, read_probe
from featherweight.guard.evidence import Evidence, join_evidence, take_evidence
from featherweight.guard.openings import opening_logprobs
from featherweight.guard.options import GuardOptions
from featherweight.guard.prefix import answer_ids
from featherweight.guard.probe import Judge, Jury, Probe
from featherweight.guard.room import context_of, probe_limit
from featherweight.guard.verdict import Verdict
from featherweight.models.generation import branch, extend, prefill, stop_token_ids_of
from featherweight.models.templates import stop_ids


def messages_of(prompt: Any) -> list[Any]:
    """Return a prompt as a conversation: a text is the turn of a user."""
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)


def encode_judged(tokenizer: Any, prompt: Any) -> list[int]:
    """Return the tokens of a prompt up to the reply."""
    return answer_ids(tokenizer, messages_of(prompt))[0]


def left_padded(rows: Sequence[Sequence[int]], pad_token_id: int = 0) -> tuple[Tensor, Tensor]:
    """Return token ids and mask of rows of different lengths."""
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), pad_token_id)
    mask = torch.zeros((len(rows), width), dtype=torch.int64)
    for place, row in enumerate(rows):
        ids[place, width - len(row) :] = torch.tensor(row)
        mask[place, width - len(row) :] = 1
    return ids, mask


def all_stops(model: Any, tokenizer: Any) -> tuple[int, ...]:
    """Return the tokens that end a reply, by the model's settings and by the template."""
    return tuple({*stop_token_ids_of(model), *stop_ids(tokenizer)})


def batches(tokenizer: Any, prompts: Sequence[Any], batch_size: int) -> Iterator[tuple[list[int], list[list[int]]]]:
    """Yield places and tokens of prompts, those of like length together."""
    encoded = [encode_judged(tokenizer, prompt) for prompt in prompts]
    order = sorted(range(len(encoded)), key=lambda place: len(encoded[place]))
    for start in range(0, len(order), batch_size):
        places = order[start : start + batch_size]
        yield places, [encoded[place] for place in places]


@dataclass(frozen=True)
class Collected:
    """What was read of prompts with one prefix."""

    evidence: Evidence
    snapshots: dict[int, Evidence]
    """Probe tokens -> what was known at that place, of the tiers that read the probe."""


def collect(
    guards: Sequence[Judge],
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Any],
    *,
    batch_size: int = 16,
    progress: Callable[[int], None] = lambda count: None,
) -> list[Collected]:
    """Read all that any tier looks at, of every prompt: prompt, prefix and the whole probe.

    Args:
        guards: their prefixes, layers and lengths of the probe count; a prompt is read once for all of them.
        model: in evaluation mode.
        tokenizer: its own.
        prompts: texts or lists of messages.
        batch_size: prompts that are read together.
        progress: called with the number of prompts of each batch.

    Returns:
        For each guard, what was read, in the order of the prompts.
    """
    stops, order = all_stops(model, tokenizer), []
    parts: list[list[tuple[Evidence, dict[int, Evidence]]]] = [[] for _ in guards]
    for places, rows in batches(tokenizer, prompts, batch_size):
        ids, mask = left_padded(rows)
        decoding = prefill(model, ids, mask, output_hidden_states=True)
        for guard, found in zip(guards, parts, strict=True):
            if probe_limit(model, len(rows[-1]), guard) < guard.options.probe_tokens:
                raise ConfigError(
                    f"guard calibrate: prompt={len(rows[-1])} tokens have no room for a whole probe in the context of "
                    f"{context_of(model)} tokens; expected {guard.options.probe_tokens} tokens behind the prefix. "
                    "Leave such prompts out."
                )
            probe = Probe(guard, len(rows), stops, decides=False)
            probe.read_prompt(decoding.logits, decoding.hidden_states, decoding.tokens)
            with branch(decoding) as trial:
                read_probe(trial, probe, guard.options.forced_ids)
            found.append((probe.evidence, {count: at_place(probe, count) for count in probe.snapshots}))
        order += places
        progress(len(rows))
    back = sorted(range(len(order)), key=lambda place: order[place])
    return [_joined(found, back) for found in parts]


def collect_openings(
    options: GuardOptions, model: Any, tokenizer: Any, prompts: Sequence[Any], *, batch_size: int = 16
) -> Tensor:
    """Return the log-likelihood of openings behind every prompt and the forced prefix.

    Args:
        options: name the openings and the prefix.
        model: in evaluation mode.
        tokenizer: its own.
        prompts: texts or lists of messages.
        batch_size: prompts that are read together.

    Returns:
        (N, C) float32, in the order of the prompts.
    """
    found = torch.empty((len(prompts), len(options.openings)))
    for places, rows in batches(tokenizer, prompts, batch_size):
        decoding = prefill(model, *left_padded(rows))
        extend(decoding, torch.tensor(options.forced_ids))
        found[places] = opening_logprobs(decoding, options.openings).cpu()
    return found


def with_words(collected: Collected, tokenizer: Any, prompts: Sequence[Any]) -> Collected:
    """Return the same with the tokens of the requests, as far as a tier may read their words.

    Args:
        collected: of these prompts.
        tokenizer: of the model.
        prompts: texts or lists of messages.
    """
    ids = [encode_judged(tokenizer, prompt) for prompt in prompts]
    snapshots = {place: replace(one, prompt_ids=ids) for place, one in collected.snapshots.items()}
    return Collected(replace(collected.evidence, prompt_ids=ids), snapshots)


def at_place(probe: Probe, count: int) -> Evidence:
    """Return what was known of a probe after so many tokens."""
    ids = [one[:count] for one in probe.evidence.probe_ids]
    ended = [
        done and len(one) < count
        for one, done in zip(probe.evidence.probe_ids, probe.evidence.probe_ended, strict=True)
    ]
    known: dict[str, Any] = {"prefix_hidden": probe.evidence.prefix_hidden, "probe_hidden": probe.snapshots[count]}
    return Evidence(**known, probe_ids=ids, probe_ended=ended)


def _joined(parts: list[tuple[Evidence, dict[int, Evidence]]], order: list[int]) -> Collected:
    # A batch whose replies all end early has no later places: there, its last one stands for them.
    places = sorted({place for _, snapshots in parts for place in snapshots})
    snapshots = {
        place: take_evidence(join_evidence([found.get(place, _last(whole)) for whole, found in parts]), order)
        for place in places
    }
    return Collected(take_evidence(join_evidence([whole for whole, _ in parts]), order), snapshots)


def _last(whole: Evidence) -> Evidence:
    known: dict[str, Any] = {"prefix_hidden": whole.prefix_hidden, "probe_hidden": whole.probe_hidden}
    return Evidence(**known, probe_ids=whole.probe_ids, probe_ended=whole.probe_ended)


def judge_all(guard: Jury, model: Any, tokenizer: Any, prompts: Sequence[Any], *, batch_size: int = 8) -> list[Verdict]:
    """Return the verdict of each prompt, in order."""
    rules = AnswerRules(max_new_tokens=1, stop_token_ids=all_stops(model, tokenizer))
    found: dict[int, Verdict] = {}
    for places, rows in batches(tokenizer, prompts, batch_size):
        ids, mask = left_padded(rows)
        verdicts = judge_prompts(guard, model, ids, mask, rules).verdicts
        found |= dict(zip(places, verdicts, strict=True))
    return [found[place] for place in range(len(prompts))]
