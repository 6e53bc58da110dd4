"""Many requests in one batch: each joins when it comes and leaves when it has ended (continuous batching).

One thread owns the model. A request is read alone, then its probe is a row of the batch, beside the answers of others;
its own answer takes that row over when the verdict has fallen, so that no token of a flagged request is ever computed.
Models whose caches cannot be padded (sliding windows, recurrent states) are decoded row by row, in turns.
Shapes: B rows, V vocabulary.
"""

import collections
import logging
import threading
import time
from collections.abc import Collection
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch

from featherweight.errors import FeatherweightError
from featherweight.guard.decoding import read_forced, read_prompt_and_forced
from featherweight.guard.monitor import HeldBack, Monitor
from featherweight.guard.options import READ_AT
from featherweight.guard.probe import Probe
from featherweight.guard.room import probe_limit
from featherweight.guard.verdict import Verdict
from featherweight.methods.s2ft.layer import BASE
from featherweight.models.cache import can_pad, new_cache
from featherweight.models.decoding_rows import drop_columns, join, keep_rows
from featherweight.models.generation import Decoding, branch, extend, fork, prefill
from featherweight.models.sampling import GREEDY, choose
from featherweight.serving.adapters import RowAdapters
from featherweight.serving.job import Ended, Job, TokenWritten, VerdictFell

_log = logging.getLogger("featherweight.serving")
_TRIMMED = 32
"""Padding that all rows share is taken out when there is so much of it."""


class Busy(FeatherweightError):
    """The queue is full; the client may come again."""


class Closing(FeatherweightError):
    """The server is about to end."""


@dataclass
class Ballot:
    """The verdicts of the guards that judge a request, until all have spoken."""

    decoding: Decoding | None
    """Where the answer goes on; None if that is the row of the probe."""
    voters: int
    """How many guards judge it."""
    verdicts: list[Verdict] = field(default_factory=list)
    """Of those that have spoken."""


@dataclass
class Row:
    """A row of a batch: the probe of a request, or its answer."""

    job: Job
    probe: Probe | None
    generator: torch.Generator
    ballot: "Ballot | None" = None
    """What the verdict of the probe goes into."""
    monitor: Monitor | None = None
    """Watches the answer."""
    held: HeldBack | None = None
    """Tokens that wait for what the monitor says."""
    prompt_logits: torch.Tensor | None = None
    """(1, V): of the first token of an answer that takes over the row of its probe; None if it gets its own."""
    tried: int = 0
    """Tokens of prefix and probe in that row, which the answer must not see."""

    @property
    def adapter(self) -> str:
        """Which one reads the row's tokens; a probe is the model's own, for which the guard was calibrated."""
        return BASE if self.probe is not None or self.job.adapter is None else self.job.adapter


class Engine:
    """Answers requests together.

    Args:
        model: a causal language model; put into evaluation mode.
        stop_token_ids: they end an answer.
        guard: or an ensemble, bound to the model's tokenizer; None answers everything.
        max_batch: requests that are answered together.
        max_queue: requests that wait.
        adapters: that requests may name.
    """

    def __init__(
        self,
        model: Any,
        *,
        stop_token_ids: Collection[int],
        guard: Any = None,
        max_batch: int = 16,
        max_queue: int = 64,
        adapters: RowAdapters | None = None,
    ) -> None:
        self._model, self._guard = model.eval(), guard
        self._stops = frozenset(stop_token_ids)
        self._max_batch, self._max_queue = max_batch, max_queue
        self._adapters = adapters
        self._device = next(model.parameters()).device
        self._can_pad = can_pad(new_cache(model))
        self._waiting: collections.deque[Job] = collections.deque()
        self._batches: list[tuple[Decoding, list[Row]]] = []
        self._ready: list[tuple[Decoding, Row]] = []
        self._reading = 0
        self._changed = threading.Condition()
        self._is_closing = False
        self._thread = threading.Thread(target=self._run, name="featherweight-engine", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Requests that are read or answered."""
        # An ensemble has several rows for one request.
        return self._reading + len({row.job.number for row in self._rows()})

    @property
    def is_alive(self) -> bool:
        """Whether requests are still taken."""
        return self._thread.is_alive() and not self._is_closing

    def submit(self, job: Job) -> None:
        """Put a request into the queue.

        Raises:
            Busy: if the queue is full.
            Closing: if the server is about to end.
        """
        with self._changed:
            if not self.is_alive:
                raise Closing("serve: the server is closing; expected it to run. Ask another one.")
            if self.waiting + self.running >= self._max_queue + self._max_batch:
                raise Busy(f"serve: queue={len(self._waiting)} requests is full; expected room. Ask again in a moment.")
            self._waiting.append(job)
            self._changed.notify()

    def close(self, timeout_s: float = 30.0) -> None:
        """Take no more requests, finish those that are there, and end; after the time-out, drop them."""
        with self._changed:
            self._is_closing = True
            self._changed.notify()
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            for job in [*self._waiting, *(row.job for row in self._rows())]:
                job.cancel()
            self._thread.join(timeout_s)

    def _rows(self) -> list[Row]:
        return [row for _, rows in self._batches for row in rows] + [row for _, row in self._ready]

    def _run(self) -> None:
        while True:
            with self._changed:
                while not (self._waiting or self._batches or self._ready or self._is_closing):
                    self._changed.wait()
                if self._is_closing and not (self._waiting or self._batches or self._ready):
                    return
            try:
                self._turn()
            except Exception as error:  # nothing a request does may end the engine
                _log.exception("a step failed")
                for row in self._rows():
                    row.job.tell(Ended("error", f"{type(error).__name__}"))
                self._batches, self._ready = [], []

    def _turn(self) -> None:
        """Take in one request that waits, then let every row go on by one token."""
        while self._waiting and self._waiting[0].is_cancelled:
            self._waiting.popleft()
        if self._waiting and self.running < self._max_batch:
            with self._changed:
                job, self._reading = self._waiting.popleft(), 1
            self._begin(job)
            self._reading = 0
        self._join_ready()
        self._batches = [batch for batch in (self._step(*one) for one in self._batches) if batch is not None]

    def _begin(self, job: Job) -> None:
        """Read a prompt and the forced prefix; a failure is this request's alone."""
        try:
            begin = time.monotonic()
            job.seconds["queue"] = begin - job.started
            is_judged = self._guard is not None and job.is_guarded
            judges = [self._guard.members[place] for place in self._guard.draw()] if is_judged else []
            read = job.judged_ids if judges and job.judged_ids else job.prompt_ids
            limits = [probe_limit(self._model, len(read), judge) for judge in judges]
            probes = [Probe(one, 1, self._stops, limits=[limit]) for one, limit in zip(judges, limits, strict=True)]
            generator = torch.Generator(self._device)
            generator.manual_seed(job.seed)
            if len(judges) == 1 and self._can_pad and READ_AT[judges[0].options.stages[0].tier] > 0:
                self._begin_at_once(Row(job, probes[0], generator), read, judges[0], begin)
                return
            with self._using([Row(job, probes[0] if probes else None, generator)]):
                hidden = any(probe.needs_hidden for probe in probes)
                decoding = prefill(self._model, torch.tensor([read]), output_hidden_states=hidden)
            job.seconds["prefill"] = time.monotonic() - begin
            if not probes:
                self._answer(decoding, Row(job, None, generator))
                return
            ballot = Ballot(decoding, len(probes))
            for judge, probe in zip(judges, probes, strict=True):
                self._begin_probe(Row(job, probe, generator, ballot), judge)
        except FeatherweightError as error:
            job.tell(Ended("error", str(error)))
            job.cancel()  # the probes that it has already
        except Exception as error:
            _log.exception("request %d failed", job.number)
            job.tell(Ended("error", type(error).__name__))
            job.cancel()

    def _begin_at_once(self, row: Row, read: list[int], judge: Any, begin: float) -> None:
        """Read a prompt with the forced prefix of the one guard that judges it in one forward pass."""
        assert row.probe is not None
        forced = judge.options.forced_ids
        with (
            self._using([row]),
            read_prompt_and_forced(self._model, torch.tensor([read]), row.probe, forced) as (decoding, trial),
        ):
            row.job.seconds["prefill"] = time.monotonic() - begin
            takes_over = not row.probe.is_decided and self._can_take_over(row.job)
            row.ballot = Ballot(None if takes_over else decoding, 1)
            if not row.probe.is_decided:
                self._join(trial, row, copies=True)
            if takes_over:
                row.prompt_logits, row.tried = decoding.logits, len(forced)
        if row.probe.is_decided:
            self._cast(row)

    def _can_take_over(self, job: Job) -> bool:
        """Tell whether the answer is the model's own, right behind the prompt that was judged, or a fixed text."""
        is_plain = job.adapter is None and not job.judged_ids and not job.begun_ids and job.max_new_tokens > 0
        return is_plain and self._guard.options.on_flag != "continue"

    def _begin_probe(self, row: Row, judge: Any) -> None:
        """Read the forced prefix behind a prompt; only a probe that needs more tokens becomes a row of the batch."""
        assert row.probe is not None and row.ballot is not None and row.ballot.decoding is not None
        probe, decoding = row.probe, row.ballot.decoding
        probe.read_prompt(decoding.logits, decoding.hidden_states, decoding.tokens)
        if not probe.is_decided:
            with branch(decoding) as trial:
                read_forced(trial, probe, judge.options.forced_ids)
                if not probe.is_decided:
                    self._join(trial, row, copies=True)
                    return
        self._cast(row)

    def _cast(self, row: Row) -> None:
        """Count the verdict of a probe; with the last one, the request is judged."""
        assert row.probe is not None and row.ballot is not None
        ballot = row.ballot
        ballot.verdicts += row.probe.verdicts
        if len(ballot.verdicts) == ballot.voters:
            row.probe, row.ballot = None, None
            self._judged(row, ballot.decoding, self._guard.combine(ballot.verdicts))

    def _judged(self, row: Row, decoding: Decoding | None, verdict: Verdict) -> None:
        """Tell the verdict, and let the answer begin if the request passes."""
        job = row.job
        job.seconds["verdict"] = time.monotonic() - job.started
        job.tell(VerdictFell(verdict))
        on_flag = self._guard.options.on_flag
        if decoding is None:
            if verdict.flagged and on_flag != "annotate":
                row.prompt_logits = None
                job.tell(Ended("content_filter"))
            else:
                self._watch(row)
        elif verdict.flagged and on_flag == "continue" and verdict.error is None and job.max_new_tokens > 0:
            self._continue_refusal(decoding, row, verdict)
        elif verdict.flagged and on_flag != "annotate":
            job.tell(Ended("content_filter"))
        else:
            self._answer(decoding, row)

    def _continue_refusal(self, decoding: Decoding, row: Row, verdict: Verdict) -> None:
        """Let the model go on with the refusal that it began in the probe, greedily and watched."""
        options, job = self._guard.options, row.job
        begun = [*options.prefix_ids, *verdict.probe_ids][: job.max_new_tokens]
        for token in begun:
            job.tell(TokenWritten(token))
        job.written, job.sampling, job.adapter = len(begun), GREEDY, None
        if verdict.has_ended or len(begun) >= job.max_new_tokens:
            job.tell(Ended("stop"))
            return
        extend(decoding, torch.tensor([*options.preamble_ids, *begun], device=self._device))
        decoding.hidden_states = None
        self._watch(row)
        self._ready.append((decoding, row))

    def _answer(self, decoding: Decoding, row: Row) -> None:
        if row.job.max_new_tokens == 0:
            row.job.tell(Ended("stop"))
            return
        was_judged = row.job.is_guarded and self._guard is not None
        with self._using([row]):
            if was_judged and (row.job.judged_ids or row.job.adapter):  # what was judged is not what is answered
                decoding = prefill(self._model, torch.tensor([row.job.prompt_ids]))
            if row.job.begun_ids:
                extend(decoding, torch.tensor(row.job.begun_ids, device=self._device))
        self._watch(row)
        decoding.hidden_states = None
        self._ready.append((decoding, row))

    def _watch(self, row: Row) -> None:
        if self._guard is not None and row.job.is_guarded:
            row.monitor = self._guard.new_monitor(1)
            if row.monitor is not None:
                row.held = HeldBack(row.monitor.hold_back)

    def _using(self, rows: list[Row]) -> AbstractContextManager[Any]:
        """Let each row take its adapter."""
        return nullcontext() if self._adapters is None else self._adapters.using([row.adapter for row in rows])

    def _join_ready(self) -> None:
        ready, self._ready = self._ready, []
        for decoding, row in ready:
            self._join(decoding, row)

    def _join(self, decoding: Decoding, row: Row, *, copies: bool = False) -> None:
        """Let a row go on beside the others; with `copies`, its decoding is needed elsewhere."""
        if self._batches and can_pad(decoding.cache):
            batch, rows = self._batches[0]
            self._batches = [(join([batch, decoding]), [*rows, row])]
        else:
            self._batches = [*self._batches, (fork(decoding) if copies else decoding, [row])]

    def _step(self, decoding: Decoding, rows: list[Row]) -> tuple[Decoding, list[Row]] | None:
        """Choose the next token of every row, and read those of the rows that go on."""
        likeliest = decoding.logits.argmax(dim=1).tolist()
        found = [self._next_token(decoding, place, row, likeliest[place]) for place, row in enumerate(rows)]
        kept = [place for place, token in enumerate(found) if token is not None]
        if not kept:
            return None
        if len(kept) < len(rows):
            # Rows from behind take the places of those that leave, so that no others are copied.
            gone = [place for place, token in enumerate(found[: len(kept)]) if token is None]
            moved = dict(zip(gone, [place for place in kept if place >= len(kept)], strict=True))
            kept = [moved.get(place, place) for place in range(len(kept))]
            keep_rows(decoding, kept)
            rows = [rows[place] for place in kept]
            self._trim(decoding)
        tokens = [found[place] for place in kept]
        hidden = any(row.monitor is not None or (row.probe is not None and row.probe.needs_hidden) for row in rows)
        with self._using(rows):
            extend(decoding, torch.tensor(tokens, device=self._device)[:, None], output_hidden_states=hidden)
        states = decoding.hidden_states
        for place, row in enumerate(rows):
            if row.probe is None and row.monitor is None:
                continue
            own = None if states is None else tuple(one[place : place + 1] for one in states)
            if row.probe is not None:
                row.probe.read_token(decoding.logits[place : place + 1], own)
            elif row.monitor is not None and own is not None:
                row.monitor.read(own)
        return decoding, rows

    def _next_token(self, decoding: Decoding, place: int, row: Row, likeliest: int) -> int | None:
        """Return the token that a row reads next, or None if it leaves the batch."""
        job = row.job
        if job.is_cancelled:
            return None
        if time.monotonic() > job.deadline:
            job.tell(Ended("timeout"))
            return None
        if row.probe is not None:
            chosen = row.probe.next_tokens()
            if chosen is not None:
                row.tried += 1
                return int(chosen)
            self._cast(row)
            if row.prompt_logits is None:
                return None
            likeliest = _take_over(decoding, place, row)
        if row.monitor is not None and row.monitor.stopped_at[0] is not None:
            job.tell(Ended("content_filter"))
            return None
        token = likeliest
        if job.sampling.temperature > 0:
            token = int(choose(decoding.logits[place : place + 1], job.sampling, row.generator))
        if token in self._stops:
            self._show_rest(row)
            job.tell(Ended("stop"))
            return None
        job.written += 1
        shown = token if row.held is None else row.held.add(token)
        if shown is not None:
            job.tell(TokenWritten(shown))
        if job.written >= job.max_new_tokens:
            self._show_rest(row)
            job.tell(Ended("length"))
            return None
        return token

    def _show_rest(self, row: Row) -> None:
        for token in [] if row.held is None else row.held.rest():
            row.job.tell(TokenWritten(token))

    def _trim(self, decoding: Decoding) -> None:
        if decoding.attention_mask is None or not can_pad(decoding.cache):
            return
        shared = int((decoding.attention_mask.sum(dim=0) == 0).long().cumprod(dim=0).sum())
        if shared >= _TRIMMED:
            drop_columns(decoding, list(range(shared)))


def _take_over(decoding: Decoding, place: int, row: Row) -> int:
    """Let the answer of a row go on behind its prompt, as if the probe had not been read; return its likeliest token.

    Its tokens stay in the cache as padding inside of the row, so that nothing is copied.
    """
    assert row.prompt_logits is not None, "it takes over"
    if decoding.attention_mask is None:
        decoding.attention_mask = torch.ones_like(decoding.token_ids)
    decoding.attention_mask[place, -row.tried :] = 0
    decoding.logits[place] = row.prompt_logits[0]
    row.prompt_logits = None
    return int(decoding.logits[place].argmax())
