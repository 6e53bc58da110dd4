"""The operator's side of a network session: asks for the robot, sends commands, measures the delay."""

import json
import threading
import time
from collections import Counter, deque
from collections.abc import Callable

from featherweight.errors import FeatherweightError
from featherweight.robot.contract import Teleoperator, keyed_angles, ordered_angles
from featherweight.robot.network.delay import ClockEstimate, DelayStatistics
from featherweight.robot.network.frames import CommandFrame, FrameError, StateFrame
from featherweight.robot.network.session import new_session, session_tag
from featherweight.robot.network.topics import Topics
from featherweight.robot.network.transport import Transport

REQUEST_PERIOD_NS = 500_000_000
LOOK_S = 0.001
"""How often the loop looks for states between its steps."""


class OperatorSide:
    """One operator of one robot.

    Args:
        leader: connected.
        transport: with the role "operator" or "instructor".
        topics: of the robot.
        name: of the operator, as others see it.
        is_instructor: whether this operator pre-empts others.
        clock_ns: monotonic clock; another one lets tests run faster than time.
    """

    def __init__(
        self,
        leader: Teleoperator,
        transport: Transport,
        topics: Topics,
        name: str = "operator",
        is_instructor: bool = False,
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.session = new_session()
        self.state: StateFrame | None = None
        """Newest state of the robot."""
        self.status: dict[str, object] = {}
        """Newest status of the robot."""
        self.clock = ClockEstimate()
        self.delays = DelayStatistics()
        self.counters: Counter[str] = Counter()
        self.sent_deg: tuple[float, ...] | None = None
        """(6,) degrees of the newest command; None while the leader commands nothing."""
        self.has_driven = False
        """Whether the robot has been this operator's at any time."""
        self.pictures: dict[str, bytes] = {}
        """Camera -> newest JPEG."""
        self.pictures_ns: dict[str, int] = {}
        """Camera -> when that came."""
        self._leader, self._transport, self._topics = leader, transport, topics
        self._name, self._clock_ns = name, clock_ns
        self._control = topics.instructor if is_instructor else topics.ctl
        self._states: deque[tuple[bytes, int]] = deque(maxlen=64)
        self._state_ns = 0
        self._sequence = 0
        self._request_ns = -REQUEST_PERIOD_NS
        transport.subscribe(topics.state, lambda _, message: self._states.append((message, clock_ns())))
        transport.subscribe(topics.status, lambda _, message: self._take_status(message))
        transport.subscribe(topics.camera("*"), self._take_picture)
        transport.liveliness(topics.alive(name))

    @property
    def has_robot(self) -> bool:
        """Whether the robot says that this session drives it."""
        return self.status.get("holder_tag") == session_tag(self.session)

    def step(self) -> None:
        """Run one step: take states, ask for the robot if need be, send one command."""
        self.take_states()
        now_ns = self._clock_ns()
        if now_ns - self._request_ns >= REQUEST_PERIOD_NS:
            self._request_ns = now_ns
            self.renew_session()
            if not self.has_robot:
                self.ask("request")
        self._lead(now_ns)

    def renew_session(self) -> None:
        """Take a new session if this one lost the robot: it will not get it again, and a new one may ask."""
        retired = self.status.get("retired_tags")
        if isinstance(retired, list) and session_tag(self.session) in retired:
            self.session, self._sequence = new_session(), 0

    @property
    def state_ns(self) -> int:
        """When the newest state came; 0 before the first."""
        return self._state_ns

    def take_states(self) -> None:
        """Take the states that have come."""
        while self._states:
            self._take_state(*self._states.popleft())

    def ask(self, kind: str) -> None:
        """Send a request to the robot: "request", "release", "pause", "stop" or "reset"."""
        message = {"type": kind, "session": self.session, "name": self._name, "sequence": self._sequence}
        self._transport.publish(self._control, json.dumps(message).encode())

    def run(
        self, stop: threading.Event, rate_hz: float = 60.0, on_step: Callable[["OperatorSide"], None] | None = None
    ) -> None:
        """Run steps until `stop` is set; gives the robot back at the end."""
        due_s = time.monotonic()
        try:
            while not stop.is_set():
                self.step()
                if on_step is not None:
                    on_step(self)
                due_s = max(due_s + 1 / rate_hz, time.monotonic())
                while time.monotonic() < due_s and not stop.is_set():
                    stop.wait(min(LOOK_S, max(0.0, due_s - time.monotonic())))
                    self.take_states()
        finally:
            self.ask("release")

    def _lead(self, now_ns: int) -> None:
        try:
            if self.state is not None:
                self._leader.send_feedback(keyed_angles(self.state.angles_deg))
            for event in self._leader.poll_events():
                self.ask(event)
            action = self._leader.get_action()
            angles_deg = None if action is None else ordered_angles("join", action)
        except (FeatherweightError, OSError):
            # Nothing is sent, so the robot's side holds the arm.
            self.counters["faulty leader"] += 1
            angles_deg = None
        self.sent_deg = angles_deg
        if angles_deg is None:
            return
        self._sequence += 1
        sent_ns = self._clock_ns()
        echo_ns = self.state.sent_ns if self.state else 0
        hold_us = max(0, sent_ns - self._state_ns) // 1000 if self.state else 0
        frame = CommandFrame(self.session, self._sequence, sent_ns, echo_ns, hold_us, angles_deg)
        self._transport.publish(self._topics.cmd, frame.encode())

    def _take_state(self, data: bytes, now_ns: int) -> None:
        try:
            state = StateFrame.decode(data)
        except FrameError as error:
            self.counters[str(error)] += 1
            return
        newest = self.state
        if newest is not None and state.session == newest.session and state.sequence <= newest.sequence:
            self.counters["late states"] += 1
            return
        if newest is not None and state.session != newest.session:
            self.clock.reset()
        self.state, self._state_ns = state, now_ns
        round_trip_ns = self.clock.add(now_ns, state.sent_ns, state.echo_ns, state.hold_us)
        self.delays.add(state.sequence, round_trip_ns, self.clock.age_ns(now_ns, state.sent_ns))

    def _take_status(self, message: bytes) -> None:
        try:
            status = json.loads(message)
        except ValueError:
            status = None
        if isinstance(status, dict):
            self.status = status
            self.has_driven = self.has_driven or self.has_robot
        else:
            self.counters["malformed status"] += 1

    def _take_picture(self, topic: str, message: bytes) -> None:
        name = topic.rsplit("/", 1)[1]
        self.pictures_ns[name] = self._clock_ns()
        self.pictures[name] = message


def join(
    leader: Teleoperator,
    transport: Transport,
    topics: Topics,
    name: str = "operator",
    is_instructor: bool = False,
    stop: threading.Event | None = None,
    on_step: Callable[[OperatorSide], None] | None = None,
) -> OperatorSide:
    """Drive a robot of a room with a connected leader, until `stop` is set or Ctrl-C.

    Args:
        leader: connected.
        transport: with the role "operator" or "instructor".
        topics: of the robot.
        name: of the operator.
        is_instructor: whether this operator pre-empts others.
        stop: ends the loop; None for Ctrl-C alone.
        on_step: called after every step.
    """
    leader._require_connection("join")
    side = OperatorSide(leader, transport, topics, name, is_instructor)
    try:
        side.run(stop or threading.Event(), on_step=on_step)
    except KeyboardInterrupt:
        pass
    return side
