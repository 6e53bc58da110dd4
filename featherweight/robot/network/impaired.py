"""A bad network in front of a good one: delay, jitter, loss, reordering, duplicates, a slow line; seeded."""

import heapq
import itertools
import random
import threading
import time

from pydantic import Field

from featherweight.config import Config
from featherweight.errors import ConfigError, did_you_mean
from featherweight.robot.network.transport import Callback, Transport


class Impairment(Config):
    """How bad a network is, one way."""

    delay_s: float = Field(default=0.0, ge=0)
    """Mean delay."""
    jitter_s: float = Field(default=0.0, ge=0)
    """The delay varies evenly by up to this in both directions; the order is kept, as in a queue."""
    loss: float = Field(default=0.0, ge=0, le=1)
    """Share of messages that are lost."""
    reorder: float = Field(default=0.0, ge=0, le=1)
    """Share of messages that later ones overtake."""
    duplicate: float = Field(default=0.0, ge=0, le=1)
    """Share of messages that come twice."""
    rate_bytes_s: float | None = Field(default=None, gt=0)
    """Of the line; None for no limit. A queue of more than a second drops messages."""
    seed: int = Field(default=0, ge=0)
    """Of all chances."""

    @classmethod
    def preset(cls, name: str) -> "Impairment":
        """Return a network by name: lan, continent, tokyo-dhaka, satellite.

        Raises:
            ConfigError: if the name is unknown.
        """
        presets = {
            "lan": cls(delay_s=0.001, jitter_s=0.001),
            "continent": cls(delay_s=0.020, jitter_s=0.005, loss=0.002),
            "tokyo-dhaka": cls(delay_s=0.075, jitter_s=0.015, loss=0.01),
            "satellite": cls(delay_s=0.300, jitter_s=0.030, loss=0.02),
        }
        if name not in presets:
            raise ConfigError(
                f"Impairment: preset={name!r} is unknown; expected a network. {did_you_mean(name, presets)}"
            )
        return presets[name]


class ImpairedQueue:
    """Messages on their way, in any clock: `push` decides when each one comes out, if it does."""

    def __init__(self, impairment: Impairment) -> None:
        self._impairment = impairment
        self._random = random.Random(impairment.seed)
        self._waiting: list[tuple[float, int, str, bytes]] = []
        self._order = itertools.count()
        self._last_s = 0.0
        self._line_free_s = 0.0

    def push(self, now_s: float, topic: str, message: bytes) -> None:
        """Send a message at an instant."""
        config, chance = self._impairment, self._random.random
        if chance() < config.loss:
            return
        start_s = now_s
        if config.rate_bytes_s is not None:
            start_s = max(now_s, self._line_free_s)
            if start_s - now_s > 1.0:
                return
            self._line_free_s = start_s = start_s + len(message) / config.rate_bytes_s
        due_s = start_s + max(0.0, config.delay_s + config.jitter_s * self._random.uniform(-1, 1))
        if chance() < config.reorder:
            due_s += 0.03 + config.jitter_s
        else:
            self._last_s = due_s = max(due_s, self._last_s)
        for _ in range(2 if chance() < config.duplicate else 1):
            heapq.heappush(self._waiting, (due_s, next(self._order), topic, message))

    def pop(self, now_s: float) -> list[tuple[str, bytes]]:
        """Return what has come out by now, in its order."""
        out = []
        while self._waiting and self._waiting[0][0] <= now_s:
            _, _, topic, message = heapq.heappop(self._waiting)
            out.append((topic, message))
        return out

    @property
    def next_s(self) -> float | None:
        """When the next message comes out; None if there is none."""
        return self._waiting[0][0] if self._waiting else None


class Impaired:
    """A transport whose sent messages go through an `ImpairedQueue`; see `Transport`.

    Args:
        transport: the good one.
        impairment: of what is sent.
    """

    def __init__(self, transport: Transport, impairment: Impairment) -> None:
        self._transport = transport
        self._queue = ImpairedQueue(impairment)
        self._wakeup = threading.Condition()
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name="impaired", daemon=True)
        self._thread.start()

    @property
    def is_connected(self) -> bool:
        """See `Transport`."""
        return self._transport.is_connected

    def publish(self, topic: str, message: bytes) -> None:
        """Send later, or never."""
        with self._wakeup:
            self._queue.push(time.monotonic(), topic, message)
            self._wakeup.notify()

    def subscribe(self, topic: str, callback: Callback) -> None:
        """See `Transport`."""
        self._transport.subscribe(topic, callback)

    def liveliness(self, topic: str) -> None:
        """See `Transport`."""
        self._transport.liveliness(topic)

    def roster(self, topic: str) -> list[str]:
        """See `Transport`."""
        return self._transport.roster(topic)

    def close(self) -> None:
        """Drop what is on its way, and leave."""
        with self._wakeup:
            self._is_closed = True
            self._wakeup.notify()
        self._thread.join(timeout=1)
        self._transport.close()

    def _run(self) -> None:
        while True:
            with self._wakeup:
                if self._is_closed:
                    return
                due_s = self._queue.next_s
                now_s = time.monotonic()
                if due_s is None or due_s > now_s:
                    self._wakeup.wait(None if due_s is None else due_s - now_s)
                    continue
                messages = self._queue.pop(now_s)
            for topic, message in messages:
                self._transport.publish(topic, message)
