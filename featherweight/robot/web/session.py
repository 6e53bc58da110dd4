"""One open page: what it says becomes an operator's session of a room, what the robot says goes back to it.

Messages are JSON. The page's are stamped and echo the newest stamp of the server, as frames of the network do, so the
age of a wish is known without a common clock: it may not be older, together with the way to the robot, than a command.
Pictures are JPEG, and the next one leaves when the page has the last, so a slow line gets few and fresh ones.
"""

import json
import math
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from featherweight.errors import ConfigError
from featherweight.robot.contract import keyed_angles
from featherweight.robot.network.delay import JUMP_NS, ClockEstimate
from featherweight.robot.network.operator_side import OperatorSide
from featherweight.robot.network.topics import Topics
from featherweight.robot.network.transport import Transport
from featherweight.robot.safety.config import SafetyConfig
from featherweight.robot.web.leader import WebLeader, Wish

MAX_PAGE_BYTES = 4096
"""Of a page; the largest of ours has less than 300."""
WAITING_STATES = 20
"""States that may be on their way to a page; a slow line gets fewer and newer ones."""
STALE_S = 0.5
"""Silence of the robot after which the page says so."""
LATE_S = 1.0
"""For how long a page says that its wishes come too late."""
STEP_S, FIRST_STEP_S, IDLE_STEP_S = 1 / 60, 1 / 240, 1 / 20
"""Between steps while the page leads, in the first moment of that, and while it does not."""
FIRST_S = 0.06
"""That moment: a robot obeys after three round trips, which should not take a hand's patience."""
SLOW_PERIOD_S = 0.5
"""How often the round trip and what the room tells are renewed."""


@dataclass(frozen=True)
class Visitor:
    """Who has opened a page; roles are those of the network.

    Attributes:
        name: as others see it.
        role: "operator", "instructor" or "observer".
    """

    name: str
    role: str = "operator"

    @property
    def may_drive(self) -> bool:
        """Whether the role allows commands."""
        return self.role in ("operator", "instructor")


class PageSession:
    """A page's session with one robot.

    Args:
        visitor: who.
        transport: of the visitor's role.
        topics: of the robot.
        safety: limits of age.
        clock: time in seconds.
    """

    def __init__(
        self,
        visitor: Visitor,
        transport: Transport,
        topics: Topics,
        safety: SafetyConfig | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.visitor, self.topics, self.counters = visitor, topics, Counter[str]()
        self.leader = WebLeader(visitor.name, clock)
        self.leader.connect()
        self._max_age_s = (safety or SafetyConfig()).max_age_ms / 1000
        self._transport, self._clock = transport, clock
        self.side = OperatorSide(
            self.leader,
            transport,
            topics,
            visitor.name,
            visitor.role == "instructor",
            clock_ns=lambda: round(clock() * 1e9),
        )
        self._page_clock = ClockEstimate()
        self._newest_ms: tuple[float, float] | None = None
        self._sent = self._seen = 0
        self._picture_sent = self._picture_seen = 0
        self._picture: bytes | None = None
        self._told: dict[str, Any] = {}
        self._camera = ""
        self._round_trip_ms, self._loss_percent = 0.0, 0
        self._age_ms: float | None = None
        self._slow_s = self._began_s = self._late_s = -math.inf

    @property
    def pause_s(self) -> float:
        """Time until the next step."""
        if not self.leader.is_leading:
            return IDLE_STEP_S
        return FIRST_STEP_S if self._clock() - self._began_s < FIRST_S else STEP_S

    def take(self, message: dict[str, Any]) -> None:
        """Take one message of the page.

        Raises:
            ConfigError: if it is malformed; the page leads no more then.
        """
        try:
            if "ask" in message:
                self._ask(message["ask"])
            elif "t" in message:
                self._take_tick(message)
        except (KeyError, TypeError, ValueError) as error:
            self.leader.release()
            self._flush()
            raise ConfigError(
                f"web: message={str(message)[:80]} is malformed ({error}); expected one of the page. Load it again."
            ) from error

    def step(self) -> None:
        """Run one step of the operator's side."""
        if self.leader.is_leading:
            self.side.step()
        else:
            self.side.take_states()
            self._tell_leader()
        self._flush()

    def close_control(self) -> None:
        """The page is gone: freeze the arm if it led, and give the robot back."""
        self.leader.disconnect()
        self._flush()
        self.side.ask("release")

    def close_transport(self) -> None:
        """Leave the room; may take a moment."""
        self._transport.close()

    def state_message(self, told: dict[str, Any] | None = None) -> str | None:
        """Return what the page shows; None while enough is on its way to it.

        Args:
            told: what the room has to tell beside it; of it, what has changed is sent.
        """
        if self._sent - self._seen >= WAITING_STATES:
            self.counters["states left out"] += 1
            return None
        now_s, state = self._clock(), self.side.state
        if now_s - self._slow_s > SLOW_PERIOD_S:
            delays = self.side.delays
            self._slow_s, self._round_trip_ms = now_s, delays.round_trip_ms.p50
            self._loss_percent = round(100 * delays.lost / max(1, delays.lost + delays.received))
        self._sent += 1
        message: dict[str, Any] = {"s": self._sent, "t": round(now_s * 1000, 1)}
        if self._newest_ms is not None:
            page_ms, came_s = self._newest_ms
            message |= {"e": page_ms, "h": round((now_s - came_s) * 1000, 1)}
        if state is not None:
            silence_s = now_s - self.side.state_ns / 1e9
            message |= {
                "q": [round(angle, 1) for angle in state.angles_deg],
                "mode": state.mode.name,
                "lost": state.is_lost,
                "limit": state.limits_hit,
                "silent": silence_s > STALE_S,
                "rtt": round(self._round_trip_ms),
            }
        status = self.side.status
        message |= {"why": status.get("reason", ""), "by": status.get("holder"), "mine": self.side.has_robot}
        if self.leader.is_leading and self._age_ms is not None:
            message["age"] = round(self._age_ms + self.side.clock.round_trip_min_ns / 2e6)
        message["loss"] = self._loss_percent
        if now_s - self._late_s < LATE_S:
            message["late"] = round(self._max_age_s * 1000)
        if self.side.sent_deg is not None:
            message["goal"] = [round(angle, 1) for angle in self.side.sent_deg]
        message["cameras"] = sorted(self.side.pictures)
        for key, value in {**(told or {}), "views": status.get("views"), "blind": status.get("blind")}.items():
            if value != self._told.get(key):
                self._told[key] = message[key] = value
        return json.dumps(message, separators=(",", ":"))

    def picture_message(self) -> bytes | None:
        """Return the newest picture of the camera that the page shows, if it is new and the page has the last one."""
        picture = self.side.pictures.get(self._camera)
        if picture is None or picture is self._picture or self._picture_seen < self._picture_sent:
            return None
        self._picture, self._picture_sent = picture, self._picture_sent + 1
        return picture

    def _ask(self, kind: str) -> None:
        if kind == "stop" and self.visitor.may_drive:
            self.side.ask("stop")
        elif kind == "reset" and self.visitor.may_drive:
            # Only who may drive now may reset; who is the first to ask for the robot gets it.
            if self.visitor.role != "instructor":
                self.side.renew_session()
                self.side.ask("request")
            self.side.ask("reset")

    def _take_tick(self, message: dict[str, Any]) -> None:
        now_s, page_ms = self._clock(), float(message["t"])
        self._newest_ms = (page_ms, now_s)
        self._seen = max(self._seen, int(message.get("s", 0)))
        self._picture_seen = max(self._picture_seen, int(message.get("p", 0)))
        self._camera = str(message.get("camera", ""))[:64]
        now_ns, sent_ns = round(now_s * 1e9), round(page_ms * 1e6)
        self._page_clock.add(now_ns, sent_ns, round(float(message.get("e", 0)) * 1e6), round(float(message["h"]) * 1e3))
        wish = message.get("w")
        if wish is None or not self.visitor.may_drive:
            self.leader.take(None)
        elif self._is_fresh(now_ns, sent_ns):
            if not self.leader.is_leading:
                self._began_s = now_s
            self.leader.take(Wish.parse(*wish))
        self.step()

    def _is_fresh(self, now_ns: int, sent_ns: int) -> bool:
        """Return whether a wish is young enough, its way to the robot included; an unknown age never is."""
        age_ns = self._page_clock.age_ns(now_ns, sent_ns)
        if age_ns is not None and abs(age_ns) > JUMP_NS:
            self._page_clock.reset()
            age_ns = None
        if age_ns is None:
            self.counters["unsynchronised"] += 1
            return False
        self._age_ms = age_ns / 1e6
        if age_ns / 1e9 + self.side.clock.round_trip_min_ns / 2e9 > self._max_age_s:
            self.counters["old"] += 1
            self._late_s = now_ns / 1e9
            return False
        return True

    def _tell_leader(self) -> None:
        if self.side.state is not None:
            self.leader.send_feedback(keyed_angles(self.side.state.angles_deg))

    def _flush(self) -> None:
        for event in self.leader.poll_events():
            self.side.ask(event)
