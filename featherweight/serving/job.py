"""One request inside of the engine: what it asks for, and what comes back, event by event."""

import asyncio
import itertools
import time
from dataclasses import dataclass, field
from typing import Any

from featherweight.guard.verdict import Verdict
from featherweight.models.sampling import GREEDY, Sampling

_numbers = itertools.count()


@dataclass(frozen=True)
class VerdictFell:
    """The request may be answered, or not."""

    verdict: Verdict


@dataclass(frozen=True)
class TokenWritten:
    """One more token of the answer."""

    token_id: int


@dataclass(frozen=True)
class Ended:
    """Nothing more comes."""

    reason: str
    """stop, length, content_filter, timeout or error"""
    message: str = ""
    """What went wrong."""


Event = VerdictFell | TokenWritten | Ended


@dataclass
class Job:
    """A request.

    Args:
        prompt_ids: up to the answer; what a guard judges.
        begun_ids: how the answer begins, if the caller says so.
        judged_ids: what a guard judges instead of the prompt, where that has no chat template around it.
        max_new_tokens: 0 only judges.
        sampling: how tokens are chosen.
        seed: of the random numbers.
        is_guarded: whether a guard is asked.
        adapter: which one answers; None for the model itself. A guard judges the model itself in any case.
        deadline: by `time.monotonic`.
    """

    prompt_ids: list[int]
    begun_ids: list[int] = field(default_factory=list)
    judged_ids: list[int] | None = None
    max_new_tokens: int = 0
    sampling: Sampling = GREEDY
    seed: int = 0
    is_guarded: bool = True
    adapter: str | None = None
    deadline: float = float("inf")
    number: int = field(default_factory=lambda: next(_numbers))
    is_cancelled: bool = False
    """Set by whoever no longer waits; the engine then drops the request."""
    written: int = 0
    started: float = field(default_factory=time.monotonic)
    seconds: dict[str, float] = field(default_factory=dict)
    """Phase -> time."""

    def __post_init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.events: asyncio.Queue[Event] = asyncio.Queue()

    def tell(self, event: Event) -> None:
        """Hand an event over to whoever waits, from the thread of the engine."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self.events.put_nowait, event)

    def cancel(self, *details: Any) -> None:
        """Say that nobody waits any more."""
        self.is_cancelled = True
