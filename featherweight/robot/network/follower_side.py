"""The robot's side of a network session: checks, control loop, states, pictures.

The network's threads only put messages into bounded mailboxes (a stop acts at once). One control thread takes them out
without a lock, watches the deadlines and steers. What it says goes into an outbox, whose lock is never held during
input or output. The driver's thread, which freezes the arm when a goal expires, shares no lock with anybody.
"""

import json
import secrets
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from typing import Any

from featherweight.errors import DeviceError, MissingExtraError
from featherweight.robot.camera.view import CameraView
from featherweight.robot.driver.umirobot import UMIRobot
from featherweight.robot.kit import SERVOS
from featherweight.robot.network.frames import StateFrame
from featherweight.robot.network.lease import Holder, Lease
from featherweight.robot.network.playout import PlayoutBuffer
from featherweight.robot.network.receiver import CommandReceiver
from featherweight.robot.network.session import session_tag
from featherweight.robot.network.topics import Topics
from featherweight.robot.network.transport import Transport
from featherweight.robot.safety.config import SafetyConfig
from featherweight.robot.safety.controller import Controller, Follower
from featherweight.robot.safety.mode import Mode

STATUS_PERIOD_NS = 500_000_000
LOOK_S = 0.001
"""How often the control thread looks for a command between its steps."""
MAILBOX = 64
"""Messages that wait for the next control step; a flood drops the oldest."""


class FollowerSide:
    """One robot that operators of a room may drive.

    Args:
        follower: the robot.
        transport: with the role "robot".
        topics: of this robot.
        safety: limits.
        clock_ns: monotonic clock; another one lets tests run faster than time.
        views: of its cameras, for pages that draw into their pictures.
        troubles: returns camera -> why it has no fresh picture.
    """

    def __init__(
        self,
        follower: Follower,
        transport: Transport,
        topics: Topics,
        safety: SafetyConfig | None = None,
        clock_ns: Callable[[], int] = time.monotonic_ns,
        views: Mapping[str, CameraView] | None = None,
        troubles: Callable[[], Mapping[str, str]] = dict,
    ) -> None:
        self.safety = safety or SafetyConfig()
        self.lease = Lease(self.safety.lease_s)
        self.receiver = CommandReceiver(self.lease, self.safety.max_age_ms)
        self.playout = PlayoutBuffer(self.safety.max_playout_ms, 1000 * self.safety.command_timeout_s)
        self.controller = Controller(
            follower, self.safety, getattr(getattr(follower, "calibration", None), "range_deg", None)
        )
        self.counters: Counter[str] = Counter()
        self._views = {name: view.to_dict() for name, view in (views or {}).items()}
        self._troubles = troubles
        self._follower, self._transport, self._topics, self._clock_ns = follower, transport, topics, clock_ns
        self._commands: deque[tuple[bytes, int]] = deque(maxlen=MAILBOX)
        self._requests: deque[tuple[dict[str, object], bool]] = deque(maxlen=MAILBOX)
        self._session = secrets.randbits(63) | 1
        self._sequence = 0
        self._status_ns = 0
        self._told_holder: Holder | None = None
        self._angles_deg = (0.0,) * SERVOS
        transport.subscribe(topics.cmd, lambda _, message: self._commands.append((message, clock_ns())))
        transport.subscribe(topics.ctl, lambda _, message: self._take_request(message, is_instructor=False))
        transport.subscribe(topics.instructor, lambda _, message: self._take_request(message, is_instructor=True))
        transport.liveliness(topics.alive(topics.robot))

    def step(self) -> Mode:
        """Run one control step: requests, commands, modes, one state frame."""
        while self._requests:
            self._obey(*self._requests.popleft())
        now_ns = self._clock_ns()
        holder = self.lease.holder
        self.lease.expire(now_ns / 1e9)
        if holder is not None and self.lease.holder is None:
            self._forget_operator()
        if self.lease.holder is not self._told_holder:
            # A new holder is told at once, the rest twice a second.
            self._told_holder, self._status_ns = self.lease.holder, 0
        while self._commands:
            data, came_ns = self._commands.popleft()
            angles_deg = self.receiver.receive(data, came_ns)
            if angles_deg is not None:
                self.playout.put(came_ns, self.receiver.accepted_age_ns, angles_deg)
        played_deg, came = self.playout.play(now_ns), self.playout.came_ns
        if played_deg is not None and came is not None:
            # However long a command waits to be played, the leader counts as there only while new ones come.
            self.controller.command(played_deg, came / 1e9)
        mode = self.controller.tick(now_ns / 1e9)
        if not self.controller.modes.is_moving:
            self.playout.clear()
        self._publish_state(now_ns)
        return mode

    def run(
        self, stop: threading.Event, rate_hz: float = 60.0, on_step: Callable[["FollowerSide"], None] | None = None
    ) -> None:
        """Run control steps until `stop` is set; whatever fails, the arm is held and the loop goes on."""
        due_s = time.monotonic()
        try:
            while not stop.is_set():
                try:
                    self.step()
                    if on_step is not None:
                        on_step(self)
                except Exception as error:  # a fault of ours must not end the loop that watches the deadlines
                    self.counters["internal errors"] += 1
                    self.controller.hold(f"internal error: {error}")
                    self._follower.hold()
                # Steps that commands ask for come besides; however many, the next one is at most a period away.
                now_s = time.monotonic()
                due_s = min(max(due_s + 1 / rate_hz, now_s), now_s + 1 / rate_hz)
                # A command is taken at once; looking is cheaper to reason about than a lock shared with the network.
                while time.monotonic() < due_s and not self._commands and not stop.is_set():
                    stop.wait(min(LOOK_S, max(0.0, due_s - time.monotonic())))
        finally:
            self._follower.hold()

    def status(self) -> dict[str, object]:
        """Return what operators and observers may know."""
        holder = self.lease.holder
        delays = self.receiver.delays
        return {
            "mode": self.controller.mode.name,
            "reason": self.controller.modes.reason,
            "holder": holder.name if holder else None,
            "holder_tag": session_tag(holder.session) if holder else None,
            "retired_tags": [session_tag(session) for session in self.lease.retired],
            "dropped": {name: count for name, count in self.receiver.counters.items() if name != "accepted"},
            "accepted": self.receiver.counters["accepted"],
            "controller": dict(self.controller.counters),
            "age_ms_p50": delays.age_ms.p50,
            "age_ms_p99": delays.age_ms.p99,
            "round_trip_ms_p50": delays.round_trip_ms.p50,
            "jitter_ms": delays.jitter_ms,
            "playout_ms": self.playout.delay_ms,
            "lost": delays.lost,
            "reordered": delays.reordered,
            "views": self._views,
            "blind": dict(self._troubles()),
        }

    def _take_request(self, message: bytes, is_instructor: bool) -> None:
        try:
            request = json.loads(message)
            kind = request["type"]
        except (ValueError, KeyError, TypeError):
            self.counters["malformed requests"] += 1
            return
        if kind == "stop":
            self.controller.stop(f"stopped by {str(request.get('name', 'somebody'))[:64]}")
        else:
            self._requests.append((request, is_instructor))

    def _obey(self, request: dict[str, object], is_instructor: bool) -> None:
        session, name = request.get("session"), str(request.get("name", ""))[:64]
        if not isinstance(session, int):
            self.counters["malformed requests"] += 1
            return
        now_s = self._clock_ns() / 1e9
        if request["type"] == "request":
            before = self.lease.holder
            if not self.lease.request(session, name, is_instructor, now_s):
                self.counters["refused operators"] += 1
            elif before is not None and before.session != session:
                # Another hand: its first command starts SYNC.
                self._forget_operator()
        elif request["type"] == "release" and self.lease.release(session):
            self._forget_operator()
        elif request["type"] == "pause" and self.lease.owns(session, now_s):
            self.receiver.skip(session, request.get("sequence"))
            self._forget_operator("the operator let go")
        elif request["type"] == "reset" and (is_instructor or self.lease.owns(session, now_s)):
            self.controller.request_reset()

    def _forget_operator(self, reason: str = "the leader left") -> None:
        self.controller.forget_command(reason)
        self.playout.clear()

    def _publish_state(self, now_ns: int) -> None:
        is_lost = not self._follower.is_streaming
        if not is_lost:
            try:
                self._angles_deg = self._follower.reported_deg()
            except DeviceError:
                is_lost = True
        newest, receiver = self.receiver.newest, self.receiver
        self._sequence += 1
        sent_ns = self._clock_ns()
        frame = StateFrame(
            self._session,
            self._sequence,
            sent_ns,
            newest[0].sent_ns if newest else 0,
            (sent_ns - newest[1]) // 1000 if newest else 0,
            self._angles_deg,
            self.controller.mode,
            self.controller.limits_hit,
            is_lost,
            receiver.accepted.sequence if receiver.accepted else 0,
            receiver.accepted_ns,
        )
        self._transport.publish(self._topics.state, frame.encode())
        if now_ns - self._status_ns >= STATUS_PERIOD_NS:
            self._status_ns = now_ns
            self._transport.publish(self._topics.status, json.dumps(self.status()).encode())


def serve(
    robot: UMIRobot,
    transport: Transport,
    topics: Topics,
    safety: SafetyConfig | None = None,
    stop: threading.Event | None = None,
    camera_fps: float = 30.0,
) -> FollowerSide:
    """Let operators of a room drive a connected robot, until `stop` is set or Ctrl-C; the arm is held at the end.

    Args:
        robot: connected.
        transport: with the role "robot".
        topics: of this robot.
        safety: limits.
        stop: ends the loop; None for Ctrl-C alone.
        camera_fps: pictures a second of each camera that the robot has.
    """
    robot._require_connection("serve")
    side = FollowerSide(robot, transport, topics, safety, views=robot.camera_views, troubles=robot.camera_troubles)
    stop = stop or threading.Event()
    cameras = [key for key, value in robot.observation_features.items() if isinstance(value, tuple)]
    sender = threading.Thread(target=send_pictures, args=(robot, transport, topics, stop, camera_fps), daemon=True)
    if cameras:
        sender.start()
    try:
        side.run(stop)
    except KeyboardInterrupt:
        pass
    finally:
        stop.set()
        robot.hold()
        if cameras:
            sender.join(timeout=2)
    return side


def encode_picture(picture: Any, quality: int = 75) -> bytes:
    """Return a (H, W, 3) uint8 picture as JPEG."""
    import io

    try:
        from PIL import Image
    except ImportError as error:
        raise MissingExtraError(
            "robot: package=pillow is not installed; expected it for pictures. Run pip install featherweight[robot]."
        ) from error
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def send_pictures(robot: UMIRobot, transport: Transport, topics: Topics, stop: threading.Event, fps: float) -> None:
    """Send each camera's new pictures, each once; they share neither thread nor lock with the control loop."""
    sent: dict[str, Any] = {}
    while not stop.wait(1 / fps):
        for name, picture in robot.pictures().items():
            if sent.get(name) is not picture:
                sent[name] = picture
                transport.publish(topics.camera(name), encode_picture(picture))
