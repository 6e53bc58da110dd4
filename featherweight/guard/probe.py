"""The probe of a batch of requests, as it is read: what is known after each forward pass, and what that decides.

Whoever decodes (one batch after the other, two branches side by side, a server) hands over logits and hidden states;
nothing here runs a model. Greedy, so that a verdict can be repeated and draws no random numbers.
Shapes: B requests, P forced tokens, V vocabulary.
"""

import math
import time
from collections.abc import Callable, Collection, Sequence
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from featherweight.guard.evidence import NEXT_TOKENS, Evidence, hidden_features, prefix_features, prefix_logprob
from featherweight.guard.monitor import Monitor
from featherweight.guard.options import READ_AT, GuardOptions
from featherweight.guard.verdict import Verdict

CHECK_POINTS = (4, 8, 12, 16, 24, 32)
"""Probe tokens after which a calibration asks whether the verdict stands already."""


class Judge(Protocol):
    """What scores evidence: a guard."""

    options: GuardOptions

    def score(self, tier: str, evidence: Evidence) -> Tensor:
        """Return (B,) scores of a tier, larger for what ought to be refused."""
        ...

    def probe_text(self, probe_ids: list[int]) -> str:
        """Return the text of a probe."""
        ...

    def new_monitor(self, rows: int) -> Monitor | None:
        """Return what watches answers, or None if none are watched."""
        ...


class Jury(Judge, Protocol):
    """What judges requests: a guard, which is its own only member, or an ensemble."""

    @property
    def members(self) -> Sequence[Judge]:
        """The guards in it."""
        ...

    def draw(self) -> tuple[int, ...]:
        """Return which members judge the next request."""
        ...

    def combine(self, verdicts: Sequence[Verdict]) -> Verdict:
        """Return the verdict on a request, of those of the members that judged it."""
        ...


class Alone:
    """One judge as a jury: it is its own only member."""

    @property
    def members(self) -> tuple[Self, ...]:
        """Itself."""
        return (self,)

    def draw(self) -> tuple[int, ...]:
        """Return which members judge the next request."""
        return (0,)

    def combine(self, verdicts: Sequence[Verdict]) -> Verdict:
        """Return the verdict on a request, of those of the members that judged it."""
        return verdicts[0]


class Probe:
    """A probe of B requests.

    Args:
        judge: decides.
        rows: B.
        stop_token_ids: those that end a reply; what has ended is not continued.
        decides: False reads everything and decides nothing, for calibration.
        limits: probe tokens that each request has room for; None: as many as the guard reads.
    """

    def __init__(
        self,
        judge: Judge,
        rows: int,
        stop_token_ids: Collection[int],
        *,
        decides: bool = True,
        limits: Sequence[int] | None = None,
    ) -> None:
        self.evidence = Evidence()
        self._judge, self._options, self._decides = judge, judge.options, decides
        self._stops = frozenset(stop_token_ids)
        self._rows = rows
        self._limits = [judge.options.probe_tokens] * rows if limits is None else list(limits)
        self._verdicts: list[Verdict | None] = [None] * rows
        self._logits_BV = torch.empty(0)
        self._hidden_sum = torch.empty(0)
        self._hidden_counts = [0] * rows
        self._written = 0
        self._position = 0
        self.score_seconds = 0.0
        """Time that the classifiers took."""
        self.snapshots: dict[int, Tensor | None] = {}
        """Probe tokens -> the mean hidden states at that place; only where nothing is decided."""

    @property
    def needs_hidden(self) -> bool:
        """Whether forward passes must return hidden states."""
        return self._options.needs_hidden or not self._decides

    @property
    def needs_logprobs(self) -> bool:
        """Whether the likelihood of the forced tokens is looked at, which takes logits after each of them."""
        return not self._decides or any(stage.tier == "logprob" for stage in self._options.stages)

    @property
    def needs_openings(self) -> bool:
        """Whether the likelihood of openings must be read behind the prefix."""
        return self._decides and self._options.needs_openings and not self.is_decided

    @property
    def openings(self) -> tuple[tuple[int, ...], ...]:
        """The openings whose likelihood is read behind the prefix."""
        return self._options.openings

    @property
    def is_decided(self) -> bool:
        """Whether every request has its verdict."""
        return self._decides and all(verdict is not None for verdict in self._verdicts)

    @property
    def is_whole(self) -> bool:
        """Whether every request has room for all tokens that the guard reads."""
        return min(self._limits) >= self._options.probe_tokens

    @property
    def written(self) -> int:
        """Tokens written after the prefix so far."""
        return self._written

    @property
    def verdicts(self) -> list[Verdict]:
        """One for each request."""
        found = [verdict for verdict in self._verdicts if verdict is not None]
        assert len(found) == self._rows, "the probe was read to its end"
        return found

    def read_prompt(
        self,
        logits_BV: Tensor,
        hidden_states: tuple[Tensor, ...] | None,
        prompt_ids: Callable[[], list[list[int]]] = list,
    ) -> None:
        """Take what the forward pass over the prompts returned at their last token.

        Args:
            logits_BV: of the next token.
            hidden_states: (B, D) of each layer.
            prompt_ids: returns the tokens of each prompt, where the guard reads them.
        """
        self._logits_BV = logits_BV
        if self._options.needs_words:
            self.evidence.prompt_ids = prompt_ids()
        if hidden_states is not None:
            self.evidence.prompt_hidden = hidden_features(hidden_states, self._options.layers)
        self._decide()

    def read_prefix(
        self,
        logits_BPV: Tensor,
        hidden_states: tuple[Tensor, ...] | None,
        opening_logprobs: Tensor | None = None,
        read_states: tuple[Tensor, ...] | None = None,
    ) -> None:
        """Take what the forward pass over the forced tokens returned.

        Args:
            logits_BPV: after each of them; after the last one alone unless `needs_logprobs`.
            hidden_states: at the last one.
            opening_logprobs: (B, C): of the openings behind them, where `needs_openings`.
            read_states: at all of them, for guards that read several.
        """
        options = self._options
        self.evidence.opening_logprobs = opening_logprobs
        if self.needs_logprobs:
            prefix = torch.tensor(options.prefix_ids, device=logits_BPV.device)
            skipped = len(options.preamble_ids)
            before_BV = logits_BPV[:, skipped - 1] if skipped else self._logits_BV
            self.evidence.prefix_logprob = prefix_logprob(before_BV, logits_BPV[:, skipped:], prefix)
        self._logits_BV = logits_BPV[:, -1]
        if not self._decides or any(stage.tier == "next_token" for stage in options.stages):
            shares_BV = self._logits_BV.float().log_softmax(dim=1)
            top = shares_BV.topk(min(NEXT_TOKENS, shares_BV.shape[1]), dim=1)
            self.evidence.next_ids, self.evidence.next_logprobs = top.indices, top.values
        if hidden_states is not None:
            self.evidence.prefix_hidden = prefix_features(hidden_states, read_states, options)
            self.evidence.probe_hidden = hidden_features(hidden_states, options.layers)
            self._hidden_sum = torch.zeros_like(self.evidence.probe_hidden)
        self._position = 1
        self._decide()

    def next_tokens(self) -> Tensor | None:
        """Return the token of each request to read next, (B,) int64; None if there is nothing more to read."""
        if self._position == 0 or self.is_decided or READ_AT[self._options.deciding.tier] < 2 and self._decides:
            return None
        if self._written == 0:
            self.evidence.probe_ids = [[] for _ in range(self._rows)]
            self.evidence.probe_ended = [False] * self._rows
            self._position = 2
        if self._at_end:
            return None
        chosen_B = self._logits_BV.argmax(dim=1)
        self._written += 1
        for row, token in enumerate(chosen_B.tolist()):
            if not self.evidence.probe_ended[row] and self._written <= self._limits[row]:
                self.evidence.probe_ended[row] = token in self._stops
                if token not in self._stops:
                    self.evidence.probe_ids[row].append(token)
        if not self._decides and self._written in CHECK_POINTS:
            self.snapshots[self._written] = self.evidence.probe_hidden
        self._decide()
        return None if self._at_end or self.is_decided else chosen_B

    def read_token(self, logits_BV: Tensor, hidden_states: tuple[Tensor, ...] | None) -> None:
        """Take what the forward pass over `next_tokens` returned."""
        self._logits_BV = logits_BV
        if hidden_states is None:
            return
        states_BH = hidden_features(hidden_states, self._options.layers)
        assert self.evidence.probe_hidden is not None
        means = self.evidence.probe_hidden.clone()
        for row in range(self._rows):
            if not self.evidence.probe_ended[row]:
                self._hidden_sum[row] += states_BH[row]
                self._hidden_counts[row] += 1
                means[row] = self._hidden_sum[row] / self._hidden_counts[row]
        self.evidence.probe_hidden = means

    def fail(self, reason: str) -> None:
        """Flag every request that has no verdict yet: what cannot be judged is blocked."""
        for row, verdict in enumerate(self._verdicts):
            if verdict is None:
                self._verdicts[row] = self._verdict(row, True, math.nan, "none", reason)

    def _is_whole(self, row: int) -> bool:
        """Tell whether the probe of a request has all its tokens."""
        return self._written >= self._limits[row] or self.evidence.probe_ended[row]

    @property
    def _at_end(self) -> bool:
        return all(self._is_whole(row) for row in range(self._rows))

    def _scores(self, tier: str) -> list[float]:
        begin = time.perf_counter()
        try:
            found: list[float] = self._judge.score(tier, self.evidence).tolist()
        except Exception as error:  # whatever goes wrong in a classifier, nothing passes unjudged
            self.fail(f"{type(error).__name__}: {error}")
            return []
        finally:
            self.score_seconds += time.perf_counter() - begin
        return found

    def _decide(self) -> None:
        """Let the stages whose evidence has just been read speak."""
        if not self._decides or self.is_decided:
            return
        options = self._options
        for stage in options.stages:
            is_last = stage is options.deciding
            if READ_AT[stage.tier] == 2 and self._position == 2:
                self._decide_on_probe()
            elif READ_AT[stage.tier] == self._position:
                for row, score in enumerate(self._scores(stage.tier)):
                    if not math.isfinite(score):
                        self._settle(row, True, score, stage.tier, "the score is not a finite number")
                    elif stage.flags(score):
                        self._settle(row, True, score, stage.tier)
                    elif is_last or stage.clears(score):
                        self._settle(row, False, score, stage.tier)

    def _decide_on_probe(self) -> None:
        options, stage = self._options, self._options.deciding
        early = next((one for one in options.early_exit if one.tokens == self._written), None)
        if early is None and not any(self._is_whole(row) for row in range(self._rows)):
            return
        for row, score in enumerate(self._scores(stage.tier)):
            if self._is_whole(row):
                error = None if math.isfinite(score) else "the score is not a finite number"
                self._settle(row, error is not None or stage.flags(score), score, stage.tier, error)
            elif early and early.flag_above is not None and score > early.flag_above:
                self._settle(row, True, score, stage.tier)
            elif early and early.clear_at_most is not None and score <= early.clear_at_most:
                self._settle(row, False, score, stage.tier)

    def _settle(self, row: int, flagged: bool, score: float, tier: str, error: str | None = None) -> None:
        if self._verdicts[row] is None:
            self._verdicts[row] = self._verdict(row, flagged, score, tier, error)

    def _verdict(self, row: int, flagged: bool, score: float, tier: str, error: str | None) -> Verdict:
        ids: list[int] = self.evidence.probe_ids[row] if self.evidence.probe_ids else []
        text: Any = self._judge.probe_text(ids) if ids else ""
        ended = bool(self.evidence.probe_ended) and self.evidence.probe_ended[row]
        share = next((one.probability(score) for one in self._options.stages if one.tier == tier), None)
        return Verdict(flagged, score, tier, len(ids), text, error, tuple(ids), ended, share)
