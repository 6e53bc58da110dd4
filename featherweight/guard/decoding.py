"""Guarded generation: the prompt is read once, the probe is a branch of it, and the answer waits for the verdict.

Two ways: one after the other (`sequential`), or the answer as a second row beside the probe (`parallel`), held back
until the verdict, which costs no extra step. A request that passes gets the tokens that it would get without a guard.
Shapes: B requests, L tokens of a prompt with padding on the left, P forced tokens, T tokens of an answer.
"""

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from featherweight.guard.monitor import Monitor
from featherweight.guard.openings import opening_logprobs
from featherweight.guard.options import READ_AT
from featherweight.guard.probe import Judge, Jury, Probe
from featherweight.guard.room import context_of, probe_limit
from featherweight.guard.verdict import Costs, Verdict
from featherweight.models.cache import can_pad
from featherweight.models.decoding_rows import drop_columns, keep_rows
from featherweight.models.generation import (
    Criterion,
    Decoding,
    Processor,
    branch,
    extend,
    fork,
    generate,
    prefill,
    prefill_branch,
    stream,
)
from featherweight.models.sampling import GREEDY, Generators, Sampling, choose


@dataclass(frozen=True)
class AnswerRules:
    """How answers are chosen and where they end; the probe knows nothing of it."""

    max_new_tokens: int
    """At most so many for each request."""
    sampling: Sampling = GREEDY
    """How a token is chosen."""
    generators: Generators | None = None
    """Of random numbers, one or one for each request; None takes torch's global one."""
    stop_token_ids: Collection[int] = ()
    """They end an answer, and a probe."""
    pad_token_id: int | None = None
    """Fills rows that have ended."""
    processors: Sequence[Processor] = ()
    """Change the logits of answers."""
    criteria: Sequence[Criterion] = ()
    """End answers."""
    monitor: Monitor | None = None
    """Watches answers, a row for each request that gets one."""

    def for_rows(self, rows: list[int], new_tokens: int) -> dict[str, Any]:
        """Return the arguments of `stream` for some of the requests."""
        several = isinstance(self.generators, Sequence)
        return {
            "max_new_tokens": new_tokens,
            "sampling": self.sampling,
            "generators": [self.generators[row] for row in rows] if several else self.generators,  # type: ignore[index]
            "stop_token_ids": self.stop_token_ids,
            "pad_token_id": self.pad_token_id,
            "processors": self.processors,
            "criteria": self.criteria,
            "output_hidden_states": self.monitor is not None,
        }


@dataclass
class Judged:
    """Prompts with their verdicts, at the place where the answers go on."""

    decoding: Decoding
    """Of the requests that get an ordinary answer, in order."""
    verdicts: list[Verdict]
    """One for each request."""
    answered: list[int]
    """Which requests those rows are."""
    begun: list[Tensor] = field(default_factory=list)
    """Tokens of their answers that were written beside the probe, each (rows,)."""
    costs: Costs = field(default_factory=Costs)
    """Token-forwards so far."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Phase -> time."""
    continued: dict[int, list[int]] = field(default_factory=dict)
    """Flagged request -> tokens of the refusal that the model wrote, with `on_flag: continue`."""


def judge_prompts(
    judge: Jury,
    model: nn.Module,
    token_ids: Tensor,
    attention_mask: Tensor | None,
    rules: AnswerRules,
    *,
    parallel: bool = False,
) -> Judged:
    """Read prompts and probe them.

    Args:
        judge: a guard, or an ensemble, whose members probe one after the other.
        model: a causal language model in evaluation mode.
        token_ids: (B, L)
        attention_mask: (B, L), 0 on padding; None if there is none.
        rules: of the answers.
        parallel: begin the answers beside the probe, where the cache allows it.

    Raises:
        ConfigError: if a prompt leaves no room for prefix and probe.
    """
    lengths = [token_ids.shape[1]] * len(token_ids) if attention_mask is None else attention_mask.sum(dim=1).tolist()
    limits = [[probe_limit(model, length, member) for length in lengths] for member in judge.members]
    start = time.perf_counter()
    hidden = any(member.options.needs_hidden for member in judge.members)
    decoding = prefill(model, token_ids, attention_mask, output_hidden_states=hidden)
    read = decoding.token_ids.numel() if decoding.attention_mask is None else int(decoding.attention_mask.sum())
    judged = Judged(decoding, [], list(range(decoding.rows)), costs=Costs(prompt_tokens=read))
    prefilled = time.perf_counter()
    scored = 0.0
    found: dict[int, list[Verdict]] = {}
    drawn = [judge.draw() for _ in range(decoding.rows)]
    for place in sorted({place for places in drawn for place in places}):
        member = judge.members[place]
        probe = Probe(member, decoding.rows, rules.stop_token_ids, limits=limits[place])
        _probe(judged, probe, member, rules, parallel=parallel and len(judge.members) == 1)
        found[place], scored = probe.verdicts, scored + probe.score_seconds
    judged.verdicts = [judge.combine([found[place][row] for place in places]) for row, places in enumerate(drawn)]
    judged.seconds = {
        "prefill": prefilled - start,
        "probe": time.perf_counter() - prefilled - scored,
        "classify": scored,
    }
    if judge.options.on_flag == "continue":
        for row, verdict in enumerate(judged.verdicts):
            if verdict.flagged and verdict.error is None and (monitor := judge.new_monitor(1)) is not None:
                judged.continued[row] = continue_refusal(judged, row, verdict, judge, rules, monitor)
    if judge.options.on_flag != "annotate":
        kept = [row for row, verdict in enumerate(judged.verdicts) if not verdict.flagged]
        _keep_answers(judged, kept)
    return judged


def _probe(judged: Judged, probe: Probe, judge: Judge, rules: AnswerRules, *, parallel: bool) -> None:
    """Let a probe read to its verdicts, before the answers or, where that is possible, beside them."""
    decoding, options = judged.decoding, judge.options
    probe.read_prompt(decoding.logits, decoding.hidden_states, decoding.tokens)
    if probe.is_decided:
        return
    parallel = parallel and can_pad(decoding.cache) and READ_AT[options.deciding.tier] == 2
    parallel = parallel and not options.needs_openings and probe.is_whole
    (_probe_beside if parallel else _probe_before)(judged, probe, judge, rules)


def answers(judged: Judged, rules: AnswerRules) -> Iterator[Tensor]:
    """Yield the tokens of the answers, each (rows,) for the requests in `judged.answered`; none if all are flagged."""
    if not judged.answered:
        return
    rows, place = list(range(len(judged.answered))), 0
    stops = torch.tensor(sorted(rules.stop_token_ids), dtype=torch.int64)
    has_ended = torch.zeros(len(rows), dtype=torch.bool)
    last = torch.zeros(len(rows), dtype=torch.int64)
    for last in judged.begun:
        place += 1
        has_ended |= torch.isin(last.cpu(), stops)
        yield last
    rows = [row for row in rows if not has_ended[row]]
    if not rows or place >= rules.max_new_tokens:
        return
    if len(rows) < len(has_ended):
        keep_rows(judged.decoding, rows)
    pads = last if rules.pad_token_id is None else torch.full_like(last, rules.pad_token_id)
    sources = [judged.answered[row] for row in rows]
    before = judged.decoding.length
    settings = rules.for_rows(sources, rules.max_new_tokens - place)
    if rules.monitor is not None:
        settings["criteria"] = [
            *rules.criteria,
            watching(rules.monitor, judged.decoding, sources, rules.stop_token_ids),
        ]
    for tokens in stream(judged.decoding, **settings):
        if len(rows) == len(has_ended):
            yield tokens
        else:
            yield pads.clone().index_copy_(0, torch.tensor(rows, device=pads.device), tokens)
    judged.costs.answer_tokens += (judged.decoding.length - before) * len(rows)


def watching(monitor: Monitor, decoding: Decoding, rows: Sequence[int], stops: Collection[int]) -> Criterion:
    """Return what ends the answers that a monitor stops, as each of their tokens is read.

    Args:
        monitor: of all requests.
        decoding: of these rows; what it has read so far is not looked at.
        rows: which requests they are.
        stops: tokens that end an answer; what stands behind them is not looked at.
    """
    seen, ends = decoding.length, torch.tensor(sorted(stops), dtype=torch.int64)
    is_open = torch.ones(len(rows), dtype=torch.bool)

    def stop(token_ids: Tensor) -> Tensor:
        nonlocal seen, is_open
        places = is_open.nonzero().squeeze(1)
        if decoding.length > seen and decoding.hidden_states is not None and len(places):
            seen = decoding.length
            states = tuple(state[places.to(state.device)] for state in decoding.hidden_states)
            monitor.read(states, [rows[place] for place in places.tolist()])
        is_open &= ~torch.isin(token_ids[:, -1].cpu(), ends)
        return torch.tensor([monitor.stopped_at[row] is not None for row in rows])

    return stop


def continue_refusal(
    judged: Judged, row: int, verdict: Verdict, judge: Judge, rules: AnswerRules, monitor: Monitor
) -> list[int]:
    """Return the tokens of the refusal that the model began in a probe, as it goes on with it, watched.

    Args:
        judged: whose decoding stands at the end of the prompts, with all rows.
        row: of the request.
        verdict: on it.
        judge: the guard.
        rules: of answers; the refusal is greedy.
        monitor: of one row.

    Returns:
        What may be shown: prefix, probe and continuation; [] if the monitor stopped it.
    """
    trial = fork(judged.decoding)
    keep_rows(trial, [row])
    begun = [*judge.options.prefix_ids, *verdict.probe_ids]
    read = torch.tensor([*judge.options.preamble_ids, *begun], device=trial.token_ids.device)
    extend(trial, read, output_hidden_states=True)
    if verdict.has_ended or len(begun) >= rules.max_new_tokens:
        return begun
    tokens = generate(
        trial,
        max_new_tokens=rules.max_new_tokens - len(begun),
        stop_token_ids=rules.stop_token_ids,
        criteria=[watching(monitor, trial, [0], rules.stop_token_ids)],
        output_hidden_states=True,
    )
    return [] if monitor.stopped_at[0] is not None else [*begun, *tokens[0].tolist()]


def read_forced(decoding: Decoding, probe: Probe, forced_ids: Sequence[int]) -> None:
    """Read forced tokens, and what a probe has to know right behind them.

    Args:
        decoding: where the prompts end; it goes on behind the forced tokens.
        probe: takes what is read.
        forced_ids: preamble and prefix.
    """
    forced = torch.tensor(forced_ids, device=decoding.token_ids.device)
    logits = extend(
        decoding, forced, last_logits_only=not probe.needs_logprobs, output_hidden_states=probe.needs_hidden
    )
    found = opening_logprobs(decoding, probe.openings) if probe.needs_openings else None
    probe.read_prefix(logits, decoding.hidden_states, found, decoding.read_states)


@contextmanager
def read_prompt_and_forced(
    model: nn.Module, token_ids: Tensor, probe: Probe, forced_ids: Sequence[int]
) -> Iterator[tuple[Decoding, Decoding]]:
    """Read prompts and forced tokens in one forward pass, and what a probe has to know of both.

    Args:
        model: in evaluation mode, whose cache `can_pad`.
        token_ids: (B, L) without padding.
        probe: takes what is read.
        forced_ids: preamble and prefix.

    Yields:
        Where the prompts end, to be used after the block; and where the forced tokens end.
    """
    forced, last = torch.tensor(forced_ids), not probe.needs_logprobs
    read = prefill_branch(model, token_ids, forced, last_logits_only=last, output_hidden_states=probe.needs_hidden)
    with read as (decoding, trial, logits):
        probe.read_prompt(decoding.logits, decoding.hidden_states, decoding.tokens)
        found = opening_logprobs(trial, probe.openings) if probe.needs_openings else None
        probe.read_prefix(logits, trial.hidden_states, found, trial.read_states)
        yield decoding, trial


def read_probe(decoding: Decoding, probe: Probe, forced_ids: Sequence[int]) -> int:
    """Read forced tokens and probe to the verdict, or to the end.

    Args:
        decoding: where the prompts end; it goes on behind the probe.
        probe: takes what is read.
        forced_ids: preamble and prefix.

    Returns:
        Probe tokens that were read, of each row.
    """
    read_forced(decoding, probe, forced_ids)
    read, context = 0, context_of(decoding.model)
    while (tokens := probe.next_tokens()) is not None:
        # A row that had no room for more has its verdict, and rides along at the last place of the context.
        extend(decoding, tokens[:, None], output_hidden_states=probe.needs_hidden, context=context)
        probe.read_token(decoding.logits, decoding.hidden_states)
        read += 1
    return read


def _probe_before(judged: Judged, probe: Probe, judge: Judge, rules: AnswerRules) -> None:
    forced = judge.options.forced_ids
    with branch(judged.decoding) as trial:
        read = read_probe(trial, probe, forced)
    rows, openings = judged.decoding.rows, judge.options.openings if judge.options.needs_openings else ()
    judged.costs.prefix_tokens += len(forced) * rows
    judged.costs.probe_tokens += read * rows
    judged.costs.opening_tokens += sum(len(one) - 1 for one in openings) * rows
    judged.costs.extra_steps += 1 + read + any(len(one) > 1 for one in openings)


def _probe_beside(judged: Judged, probe: Probe, judge: Judge, rules: AnswerRules) -> None:
    """Read prefix and probe in rows of their own, while the answers go on in theirs."""
    decoding, forced = judged.decoding, judge.options.forced_ids
    rows, start = decoding.rows, decoding.length
    answer = _Answers(judged, rules)
    chosen = answer.choose(decoding.logits, decoding.token_ids)
    keep_rows(decoding, [*range(rows), *range(rows)])
    monitor = rules.monitor
    forced_BP = torch.tensor(forced, device=chosen.device).expand(rows, -1)
    ahead = len(forced) - 1
    beside_BP = nn.functional.pad(chosen[:, None], (ahead, 0), value=int(forced[0]))
    mask_BP = torch.ones((2 * rows, len(forced)), dtype=torch.int64, device=chosen.device)
    mask_BP[:rows, :ahead] = 0
    hidden = probe.needs_hidden or monitor is not None

    def watch() -> None:
        # A stopped answer is cut behind the verdict; until then nothing of it is shown anyway.
        if monitor is not None and decoding.hidden_states is not None and (places := answer.open_rows):
            monitor.read(tuple(state[places] for state in decoding.hidden_states), places)

    together, last = torch.cat([beside_BP, forced_BP]), not probe.needs_logprobs
    logits = extend(decoding, together, mask_BP, last_logits_only=last, output_hidden_states=hidden)
    watch()
    states = _rows_from(decoding.hidden_states, rows), _rows_from(decoding.read_states, rows)
    probe.read_prefix(logits[rows:], states[0], read_states=states[1])
    dead = list(range(start, start + ahead))
    read = 0
    while (tokens := probe.next_tokens()) is not None:
        seen = torch.cat([decoding.token_ids[:rows, :start], decoding.token_ids[:rows, start + ahead :]], dim=1)
        chosen = answer.choose(decoding.logits[:rows], seen)
        extend(decoding, torch.cat([chosen, tokens])[:, None], output_hidden_states=hidden)
        watch()
        probe.read_token(decoding.logits[rows:], _rows_from(decoding.hidden_states, rows))
        read += 1
    keep_rows(decoding, list(range(rows)))
    if dead:
        drop_columns(decoding, dead)
    judged.costs.prefix_tokens += len(forced) * rows
    judged.costs.padding_tokens += ahead * rows
    judged.costs.probe_tokens += read * rows
    judged.costs.answer_tokens += (1 + read) * rows


class _Answers:
    """The first tokens of answers, kept back until the verdict."""

    def __init__(self, judged: Judged, rules: AnswerRules) -> None:
        self._begun, self._rules = judged.begun, rules
        self._has_ended = torch.zeros(judged.decoding.rows, dtype=torch.bool)

    @property
    def open_rows(self) -> list[int]:
        """Rows whose answer has not ended."""
        return (~self._has_ended).nonzero().squeeze(1).tolist()

    def choose(self, logits: Tensor, seen: Tensor) -> Tensor:
        rules = self._rules
        if len(self._begun) >= rules.max_new_tokens or bool(self._has_ended.all()):
            return self._begun[-1]  # read beside the probe for nothing, and never shown
        for processor in rules.processors:
            logits = processor(seen, logits)
        chosen = choose(logits, rules.sampling, rules.generators)
        if self._begun:
            pads = self._begun[-1] if rules.pad_token_id is None else torch.full_like(chosen, rules.pad_token_id)
            chosen = torch.where(self._has_ended.to(chosen.device), pads, chosen)
        self._begun.append(chosen)
        self._has_ended |= torch.isin(chosen.cpu(), torch.tensor(sorted(rules.stop_token_ids), dtype=torch.int64))
        return chosen


def _rows_from(states: tuple[Tensor, ...] | None, start: int) -> tuple[Tensor, ...] | None:
    return None if states is None else tuple(state[start:] for state in states)


def _keep_answers(judged: Judged, kept: list[int]) -> None:
    judged.answered = kept
    if kept and len(kept) < judged.decoding.rows:
        keep_rows(judged.decoding, kept)
        judged.begun = [tokens[kept] for tokens in judged.begun]


Callback = Callable[[Any, Verdict], str | None]
"""(request, verdict) -> text of the reply, or None for the refusal text."""
