"""What a guard is, as one file of settings can hold it: its prefix, its stages and what a flagged request gets."""

import math
from collections.abc import Sequence
from typing import Literal, Self

from pydantic import Field, model_validator

from featherweight.config import Config

Tier = Literal[
    "hidden",
    "logprob",
    "next_token",
    "prefix_hidden",
    "continuation",
    "probe",
    "probe_hidden",
    "states",
    "states_words",
]
"""What a stage looks at; see `featherweight.guard.evidence`."""
OnFlag = Literal["message", "truncate", "continue", "annotate", "callback"]
Branching = Literal["auto", "sequential", "parallel"]

READ_AT: dict[str, int] = {
    "hidden": 0,
    "logprob": 1,
    "next_token": 1,
    "prefix_hidden": 1,
    "continuation": 1,
    "probe": 2,
    "probe_hidden": 2,
    "states": 2,
    "states_words": 2,
}
"""Tier -> what must have been read: 0 the prompt, 1 the forced prefix, 2 the probe."""
HIDDEN = ("hidden", "prefix_hidden", "probe_hidden", "states", "states_words")
"""Tiers that read hidden states."""
FLAG_ONLY = ("hidden", "logprob")
"""Tiers that never clear a request: what talks a model out of its policy makes them look safest."""
PREFIX_STATES, LEAST_TOKENS = 8, 5
"""Of a long prefix, hidden states are read at so many of its last tokens; of one below so many, at the last alone."""
REFUSAL = "I'm sorry, but I cannot help with that."


class Stage(Config):
    """One look at a request, and what its score decides."""

    tier: Tier
    """What it looks at."""
    flag_above: float | None = None
    """A request with a higher score is flagged; None flags none."""
    clear_at_most: float | None = None
    """A request with this score or a lower one passes, and later stages do not see it; None leaves all to them. The
    last stage lets everything pass that it does not flag."""
    platt: tuple[float, float] | None = None
    """Slope and offset that turn its score into the log-odds of a request that ought to be refused, at the shares of
    the calibration; None if there were too few rows to fit them."""

    def flags(self, score: float) -> bool:
        """Tell whether a score is flagged."""
        return self.flag_above is not None and score > self.flag_above

    def clears(self, score: float) -> bool:
        """Tell whether a score passes for good."""
        return self.clear_at_most is not None and score <= self.clear_at_most

    def probability(self, score: float) -> float | None:
        """Return the probability that a request with this score ought to be refused; None if it was not fitted."""
        if self.platt is None or not math.isfinite(score):
            return None
        slope, offset = self.platt
        return 0.5 * (1 + math.tanh(0.5 * (slope * score + offset)))


class EarlyExit(Config):
    """A place inside of the probe at which the last stage may decide already."""

    tokens: int = Field(ge=1)
    """Probe tokens that were written."""
    flag_above: float | None = None
    """Decided if higher; None never."""
    clear_at_most: float | None = None
    """Decided if not higher; None never."""


class MonitorOptions(Config):
    """How answers are watched while they are written; see `featherweight.guard.monitor`."""

    decay: float = Field(default=0.9, ge=0, lt=1)
    """Of the running mean of scores: 0.9 looks back over about ten tokens, 0.5 over two; short answers need less."""
    hold_back: int = Field(default=16, ge=1)
    """So many of the newest tokens wait, and are never shown if the answer is stopped."""
    stop_above: float | None = None
    """The answer ends where the running mean is higher; None never."""
    target_fpr: float | None = Field(default=None, gt=0, lt=1)
    """The promised rate of answers to benign requests that are stopped."""
    answer_tokens: int = Field(default=64, ge=1)
    """For answers up to this length."""


class GuardOptions(Config):
    """The settings of a guard."""

    format_version: Literal[1] = 1
    """Of the folder of a guard."""
    prefix_text: str
    """The forced opening of the reply; how a refusal begins, or a topic."""
    prefix_ids: tuple[int, ...] = Field(min_length=1)
    """Its tokens, which alone are used."""
    preamble_text: str = ""
    """Stands between prompt and prefix, such as a thinking block that is closed at once."""
    preamble_ids: tuple[int, ...] = ()
    """Its tokens."""
    shows_prefix: bool = True
    """Whether the prefix is one that a user may read: a refusal, not a topic."""
    probe_tokens: int = Field(default=12, ge=1)
    """The probe has at most so many tokens behind the prefix."""
    layers: tuple[int, ...] = ()
    """Hidden states that the tiers of hidden states read; 0 is the embedding."""
    prefix_states: int = Field(default=1, ge=1)
    """At so many of the last tokens of the prefix; before the last one, only of the deepest of these layers."""
    stages: tuple[Stage, ...] = Field(min_length=1)
    """Looked at in this order."""
    early_exit: tuple[EarlyExit, ...] = ()
    """Places inside of the probe, in order; only if the last stage reads the probe."""
    policy_openings: tuple[tuple[int, ...], ...] = ()
    """How the model goes on behind the prefix where it ought to refuse, as tokens; for the tier continuation."""
    other_openings: tuple[tuple[int, ...], ...] = ()
    """How it goes on elsewhere; all openings have one length."""
    text_classifier: Literal["bow", "encoder", "finetune", "custom"] = "bow"
    """How the text of a probe becomes numbers: hashed words and pairs of words, a frozen sentence encoder, one that is
    trained as a whole, or a function of the caller's, which no file holds."""
    include_prefix: bool = False
    """Whether the prefix stands in the text that is classified; one function builds it for fit and use."""
    on_flag: OnFlag = "message"
    """What a flagged request gets: `refusal_text`; the refusal that the model began, up to its last whole sentence; the
    same as the model goes on with it, watched by the monitor; its ordinary answer, with the verdict only reported; or
    what a function returns."""
    refusal_text: str = REFUSAL
    """For `on_flag: message`, and wherever nothing better is there."""
    branch: Branching = "auto"
    """Whether the probe is read before the answer begins, or beside it as a second row; auto takes the second way on
    accelerators, for one request at a time, if the model's cache allows it."""
    monitor: MonitorOptions | None = None
    """How answers are watched; None watches none."""
    target_fpr: float | None = Field(default=None, gt=0, lt=1)
    """The promised rate of false alarms; None if none was promised."""
    promise: str = ""
    """The promise in words."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        places = [READ_AT[stage.tier] for stage in self.stages]
        if places != sorted(places):
            raise ValueError("stages must stand in the order in which a request is read")
        for stage in self.stages:
            if stage.tier in FLAG_ONLY and (stage.clear_at_most is not None or stage is self.stages[-1]):
                raise ValueError(f"the tier {stage.tier} may flag a request, it may never clear one")
        lengths = {len(one) for one in self.openings}
        if self.needs_openings and not (self.policy_openings and self.other_openings):
            raise ValueError("the tier continuation needs policy_openings and other_openings")
        if len(lengths) > 1 or 0 in lengths:
            raise ValueError("policy_openings and other_openings must have one length, of a token or more")
        if self.early_exit and places[-1] != 2:
            raise ValueError("early_exit needs a last stage that reads the probe")
        if self.on_flag in ("truncate", "continue") and not self.shows_prefix:
            raise ValueError(f"on_flag: {self.on_flag} would show a prefix that is no refusal")
        if self.on_flag == "continue" and self.monitor is None:
            raise ValueError(
                "on_flag: continue needs a monitor, as the model may turn round after its refusal; fit one with "
                "guard.with_monitor(...)"
            )
        return self

    @property
    def forced_ids(self) -> tuple[int, ...]:
        """All tokens that are forced: preamble and prefix."""
        return (*self.preamble_ids, *self.prefix_ids)

    @property
    def openings(self) -> tuple[tuple[int, ...], ...]:
        """All openings whose likelihood the tier continuation compares."""
        return (*self.policy_openings, *self.other_openings)

    @property
    def needs_openings(self) -> bool:
        """Whether some stage compares openings."""
        return any(stage.tier == "continuation" for stage in self.stages)

    @property
    def deciding(self) -> Stage:
        """The last stage."""
        return self.stages[-1]

    @property
    def needs_hidden(self) -> bool:
        """Whether some stage reads hidden states."""
        return any(stage.tier in HIDDEN for stage in self.stages)

    @property
    def needs_words(self) -> bool:
        """Whether some stage reads the words of the request."""
        return any(stage.tier == "states_words" for stage in self.stages)

    def with_threshold(self, flag_above: float) -> Self:
        """Return a copy whose last stage alone decides, at another threshold; infinities flag nothing or everything."""
        limit = None if flag_above == math.inf else max(flag_above, -1e300)
        stages = [{"tier": self.deciding.tier, "flag_above": limit, "platt": self.deciding.platt}]
        return self.parse({**self.to_dict(), "stages": stages, "early_exit": []})


def default_prefix_states(prefix_ids: Sequence[int]) -> int:
    """Return at how many of the last tokens of a prefix hidden states are read.

    In a short one the model has not yet come back from what talked it out of its policy; only its last token has.
    """
    return PREFIX_STATES if len(prefix_ids) >= LEAST_TOKENS else 1


def default_layers(count: int) -> tuple[int, ...]:
    """Return the hidden states at a half, three quarters and all of the depth of a model of so many layers.

    Example:
        >>> default_layers(30)
        (15, 22, 30)
    """
    return tuple(dict.fromkeys((max(1, count // 2), max(1, count * 3 // 4), count)))
