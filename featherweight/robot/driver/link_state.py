"""The link to a kit without input and output: bytes and times in, bytes and states out.

`link.SerialLink` runs it in a thread on a real port; tests run it in virtual time. Other threads only ever replace
whole objects (`set_goal`, `hold`, `stop`), which is atomic in Python; so no lock can stop the thread that owns the
port.
"""

import enum
import math
from collections import deque
from dataclasses import dataclass, field

from featherweight.robot.checked_lines import (
    CheckedStatus,
    format_announcement,
    format_checked_command,
    parse_checked_status,
)
from featherweight.robot.driver.target import Target
from featherweight.robot.kit import LOOP_US, TOP_SPEED_DEG_S
from featherweight.robot.protocol import LineSplitter, Status, format_command, is_text, parse_status

BOOT_WAIT_S = 4.0
"""How long the first good line may take after the port was opened."""
LOST_AFTER_S = 0.3
"""Silence after which a link counts as lost."""
REOPEN_AFTER_S = 7.5
"""Silence after which the port is opened again. Longer than the firmware's longest stall (6 s), because to open the
port resets an Uno, and its servos then jump to zero."""
SYNC_TOLERANCE_DEG = 5.0
"""A joint within this of its goal has caught up, and the soft start ends."""
ANSWER_LINES = 8
"""Status lines for which an announcement waits for its answer; a plain command meanwhile would take it back."""
BACKOFF_S = (0.2, 3.0)
"""First and largest wait between attempts to open a port."""


class LinkState(enum.Enum):
    """What the driver knows of its kit."""

    CLOSED = "closed"
    OPENING = "opening"
    BOOTING = "booting"
    STREAMING = "streaming"
    LOST = "lost"


@dataclass
class LinkStatistics:
    """Counts since `connect`."""

    lines: int = 0
    bad_lines: int = 0
    text_lines: int = 0
    """Bad lines that are readable text."""
    implausible_lines: int = 0
    bytes_received: int = 0
    commands: int = 0
    gaps: int = 0
    """Pauses of more than three loops between good lines."""
    reconnects: int = 0
    restarts: int = 0
    """Times that the kit started again under an open port."""
    expired_goals: int = 0
    """Goals that nobody renewed in time, so that the arm was frozen."""
    echo_lines: int = 0
    """Status lines from the newest measured command until its effect was reported."""
    echo_s: float = 0.0
    """The same in seconds."""
    lines_per_s: float = 0.0
    """Over the last second."""


@dataclass(frozen=True, slots=True)
class Goal:
    """Where the arm shall go; None freezes it where it is."""

    angles_deg: tuple[float, ...] | None
    max_speed_deg_s: float | None = None
    time_s: float = 0.0
    timeout_s: float | None = None
    """Age at which the arm is frozen instead of obeying any longer; None for no end."""
    epoch: int | None = None
    """The goal holds only while the core has this epoch; None for any."""


@dataclass(frozen=True, slots=True)
class Received:
    """A status line and when it came."""

    status: Status
    time_s: float
    line_number: int


@dataclass
class LinkCore:
    """States, bounded look-ahead and statistics of one link.

    Args:
        lookahead_deg: fixed look-ahead, or None to measure it: the lines until a command shows, within 3 to 6.
    """

    lookahead_deg: int | None = 3
    state: LinkState = LinkState.CLOSED
    statistics: LinkStatistics = field(default_factory=LinkStatistics)
    newest: Received | None = None
    reason: str = ""
    """Why the link is not streaming."""
    is_stopped: bool = False
    """Emergency stop: nothing moves until `release`."""
    is_frozen: bool = True
    """Whether the arm is held where it was latched."""
    epoch: int = 0
    """Rises with every loss, restart and reopening: goals of an earlier epoch are not obeyed."""
    sync_speed_deg_s: float = 30.0
    """Largest speed from a frozen arm until every joint is near its goal."""
    announces: bool = True
    """Whether the first command offers the checked protocol; the published firmware reads it as "stay"."""
    checked: CheckedStatus | None = None
    """What the newest checked line says; None while the kit speaks the plain protocol."""

    def __post_init__(self) -> None:
        self.target = Target(self.lookahead_deg or 3)
        self._splitter = LineSplitter()
        self._goal = Goal(None)
        self._last_s = 0.0
        self._starts_softly = True
        self._expired: Goal | None = None
        self._since_s = 0.0
        self._attempts = 0
        self._suspect: Status | None = None
        self._arrivals: deque[float] = deque(maxlen=512)
        self._echo: tuple[int, float, tuple[int, ...]] | None = None
        self._still_lines = 0
        self._must_announce = False
        self._unanswered_lines = 0
        self._number = 0

    # ---- from any thread --------------------------------------------------------------------------------------------

    def configure(self, lookahead_deg: int | None, sync_speed_deg_s: float) -> None:
        """Set look-ahead (None measures it) and speed of the soft start."""
        self.lookahead_deg, self.target.lookahead_deg = lookahead_deg, lookahead_deg or 3
        self.sync_speed_deg_s = sync_speed_deg_s

    def set_goal(self, goal: Goal) -> None:
        """Replace the goal; the next status line obeys it. One that is not finite freezes the arm."""
        if goal.angles_deg is not None and not all(map(math.isfinite, goal.angles_deg)):
            goal = Goal(None)
        self._goal = goal

    def hold(self) -> None:
        """Freeze the arm at the angles of the next status line; again and again makes no difference."""
        self._goal = Goal(None)

    def stop(self) -> None:
        """Emergency stop: freeze, and refuse every goal until `release`."""
        self.is_stopped = True

    def release(self) -> None:
        """End an emergency stop; the arm stays frozen until a new goal comes."""
        self._goal = Goal(None)
        self.is_stopped = False

    # ---- from the thread of the port --------------------------------------------------------------------------------

    def opening(self) -> None:
        """The port is about to be opened."""
        self.state = LinkState.OPENING

    def opened(self, now_s: float) -> None:
        """The port is open; old bytes are gone, and the board may be booting."""
        self.state, self.reason, self._since_s = LinkState.BOOTING, "waits for the first status line", now_s
        self._splitter.clear()
        self._suspect, self.checked = None, None
        self._must_announce = self.announces
        self._forget_goal()

    def failed(self, now_s: float, reason: str) -> float:
        """The port could not be opened, or broke; return how long to wait before the next attempt."""
        if self.state is LinkState.STREAMING:
            self.statistics.reconnects += 1
        self.state, self.reason, self._since_s = LinkState.LOST, reason, now_s
        self._forget_goal()
        wait_s = min(BACKOFF_S[0] * 2.0 ** min(self._attempts, 10), BACKOFF_S[1])
        self._attempts += 1
        return wait_s

    def closed(self) -> None:
        """The user closed the link."""
        self.state, self.reason = LinkState.CLOSED, ""
        self._forget_goal()

    def received(self, now_s: float, data: bytes) -> bytes:
        """Take bytes; return what to send, which is at most one command, and only after a status line."""
        self.statistics.bytes_received += len(data)
        newest = None
        for line in self._splitter.feed(data):
            status = self._read(line)
            if status is None:
                self.statistics.bad_lines += 1
                self.statistics.text_lines += is_text(line)
            elif self._is_plausible(status, now_s):
                newest = status
                self._count_line(now_s, status)
            else:
                self.statistics.implausible_lines += 1
        if newest is None:
            return b""
        if self.state is not LinkState.STREAMING:
            self.state, self.reason, self._attempts = LinkState.STREAMING, "", 0
            self._forget_goal()
        if self._must_announce:
            self._must_announce, self._number, self._unanswered_lines = False, 0, ANSWER_LINES
            self.statistics.commands += 1
            return format_announcement(self.target.latch(newest.q_deg))
        if self.checked is None and self._unanswered_lines > 0:
            self._unanswered_lines -= 1
            return b""
        target = self._next_target(newest, now_s)
        self.statistics.commands += 1
        if self.checked is None:
            return format_command(target)
        self._number += 1
        return format_checked_command(self._number, target)

    def _read(self, line: bytes) -> Status | None:
        """Read a line of either protocol, and note when a kit changes from one to the other."""
        status = parse_status(line)
        if status is not None:
            if self.checked is not None:
                # The kit started again under an open port, and knows of no announcement any more.
                self.checked, self._must_announce = None, self.announces
                self.statistics.restarts += 1
                self._forget_goal()
            return status
        checked = parse_checked_status(line)
        if checked is None:
            return None
        self.checked = checked
        return checked.status

    def check_silence(self, now_s: float) -> bool:
        """Look at the clock; return True if the port shall be closed and opened again."""
        last_s = self.newest.time_s if self.newest is not None else self._since_s
        silence_s = now_s - max(last_s, self._since_s)
        if self.state is LinkState.STREAMING and silence_s > LOST_AFTER_S:
            self.state = LinkState.LOST
            self.reason = f"was silent for {LOST_AFTER_S} s"
            self.statistics.reconnects += 1
            self._forget_goal()
        if self.state is LinkState.BOOTING:
            return silence_s > BOOT_WAIT_S
        return self.state is LinkState.LOST and silence_s > REOPEN_AFTER_S

    def lines_per_s(self, now_s: float) -> float:
        """Good status lines within the last second."""
        return float(sum(1 for arrival in list(self._arrivals) if now_s - arrival <= 1.0))

    # ---- parts ------------------------------------------------------------------------------------------------------

    def _forget_goal(self) -> None:
        """After any doubt the arm is frozen first; only a goal that is set from now on moves it."""
        self.epoch += 1
        self._goal = Goal(None)
        self.is_frozen = self._starts_softly = True
        self.target.sent_deg = None
        self._echo, self._still_lines = None, 0

    def _is_plausible(self, status: Status, now_s: float) -> bool:
        """Refuse a line whose angles cannot have been reached since the last one.

        The protocol has no checksum, and a flipped bit makes 45 of 55. When the kit itself starts again, its angles
        jump too; then the next line agrees with this one, and the arm is frozen.
        """
        if self.newest is None or self.state is not LinkState.STREAMING:
            return True
        elapsed_s = max(0.0, now_s - self.newest.time_s)
        if _distance(status, self.newest.status) <= elapsed_s * TOP_SPEED_DEG_S * 1.2 + 3:
            self._suspect = None
            return True
        suspect, self._suspect = self._suspect, status
        if suspect is not None and _distance(status, suspect) <= 3:
            self._suspect = None
            self.statistics.restarts += 1
            self._forget_goal()
            return True
        return False

    def _count_line(self, now_s: float, status: Status) -> None:
        statistics = self.statistics
        if self.newest is not None and now_s - self.newest.time_s > 3 * LOOP_US / 1e6:
            statistics.gaps += 1
        statistics.lines += 1
        self._arrivals.append(now_s)
        self.newest = Received(status, now_s, statistics.lines)

    def _next_target(self, status: Status, now_s: float) -> tuple[int, ...]:
        goal, before = self._goal, self._known_target(status)
        elapsed_s, self._last_s = now_s - self._last_s if before is not None else LOOP_US / 1e6, now_s
        if goal.timeout_s is not None and now_s - goal.time_s > goal.timeout_s and goal is not self._expired:
            self._expired = goal
            self.statistics.expired_goals += 1
        is_old = goal is self._expired or (goal.epoch is not None and goal.epoch != self.epoch)
        if goal.angles_deg is None or self.is_stopped or is_old:
            if before is None or not self.is_frozen:
                before = self.target.latch(status.q_deg)
            self.is_frozen = self._starts_softly = True
            self._count_still(status, before)
            return before
        if before is None or self.is_frozen:
            # The ramp starts where the arm is now, which may have settled a degree from where it was latched.
            self.target.latch(status.q_deg)
        speed_deg_s = goal.max_speed_deg_s
        if self._starts_softly:
            speed_deg_s = min(self.sync_speed_deg_s, speed_deg_s or self.sync_speed_deg_s)
            offsets = [abs(wish - q) for wish, q in zip(goal.angles_deg, status.q_deg, strict=True)]
            self._starts_softly = max(offsets) > SYNC_TOLERANCE_DEG
        target = self.target.advance(status.q_deg, goal.angles_deg, speed_deg_s, elapsed_s)
        self.is_frozen = False
        self._measure_echo(status, before, target, now_s)
        return target

    def _known_target(self, status: Status) -> tuple[int, ...] | None:
        """Return the newest target, unless the arm stands where it cannot be if the kit has kept that target.

        Then the kit started again in a gap of the lines; the old target would make it run back.
        """
        before = self.target.sent_deg
        most = self.target.lookahead_deg + (0 if self.is_frozen else 3)
        if before is not None and max(abs(b - q) for b, q in zip(before, status.q_deg, strict=True)) > most:
            self.statistics.restarts += 1
            self._forget_goal()
        return self.target.sent_deg

    def _measure_echo(
        self, status: Status, before: tuple[int, ...] | None, after: tuple[int, ...], now_s: float
    ) -> None:
        """Count the lines from a command to an arm at rest until the arm reports motion."""
        if self._echo is not None:
            line, time_s, rest_deg = self._echo
            if status.q_deg != rest_deg:
                self.statistics.echo_lines = self.statistics.lines - line
                self.statistics.echo_s = now_s - time_s
                if self.lookahead_deg is None:
                    self.target.lookahead_deg = max(3, min(6, self.statistics.echo_lines))
                self._echo, self._still_lines = None, 0
            return
        self._count_still(status, before)
        if self._still_lines > 5 and after != before:
            self._echo = (self.statistics.lines, now_s, status.q_deg)

    def _count_still(self, status: Status, target: tuple[int, ...] | None) -> None:
        self._still_lines = self._still_lines + 1 if status.q_deg == target else 0


def _distance(one: Status, other: Status) -> int:
    return max(abs(a - b) for a, b in zip(one.q_deg, other.q_deg, strict=True))
