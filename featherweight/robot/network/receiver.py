"""The follower's way in: bytes to commands, with a reason and a counter for everything that is dropped.

Order: size, magic and CRC; lease; sequence strictly rising; age; finite. Limits, guard, look-ahead and rounding come
after it, in the controller and the driver.
"""

import math
from collections import Counter

from featherweight.robot.network.delay import JUMP_NS, ClockEstimate, DelayStatistics
from featherweight.robot.network.frames import CommandFrame, FrameError
from featherweight.robot.network.lease import Lease

SYNCHRONISED_NS = 3_000_000_000
"""A session must have echoed one of our stamps within this time: a recording of frames cannot."""


class CommandReceiver:
    """Checks command frames.

    Args:
        lease: who may drive.
        max_age_ms: see `SafetyConfig`.
    """

    def __init__(self, lease: Lease, max_age_ms: float = 250.0) -> None:
        self.counters: Counter[str] = Counter()
        """Reason -> frames dropped, and "accepted"."""
        self.clock = ClockEstimate()
        self.delays = DelayStatistics()
        self.accepted: CommandFrame | None = None
        self.accepted_ns = 0
        self.newest: tuple[CommandFrame, int] | None = None
        """Newest frame of the holder in its order, accepted or not, and when it came; its stamp is what states echo."""
        self.accepted_age_ns = 0
        self._lease = lease
        self._max_age_ns = round(max_age_ms * 1e6)
        self._session = 0
        self._highest = -1
        self._echo_s_ns = -SYNCHRONISED_NS

    def receive(self, data: bytes, now_ns: int) -> tuple[float, ...] | None:
        """Check one frame; return its (6,) degrees, or None if it is dropped.

        Args:
            data: as it came.
            now_ns: on the monotonic clock.
        """
        try:
            frame = CommandFrame.decode(data)
        except FrameError as error:
            self._drop(str(error))
            return None
        if not self._lease.owns(frame.session, now_ns / 1e9):
            self._drop("lease")
            return None
        if frame.session != self._session:
            self._begin(frame.session)
        if frame.sequence <= self._highest:
            self.delays.reordered += frame.sequence < self._highest
            self._drop("late" if frame.sequence < self._highest else "duplicate")
            return None
        self._highest, self.newest = frame.sequence, (frame, now_ns)
        # A frame of the holder that is in order says that the operator is there, even if its command is too old.
        self._lease.renew(now_ns / 1e9)
        age_ns = self.clock.age_ns(now_ns, frame.sent_ns)
        if age_ns is not None and abs(age_ns) > JUMP_NS:
            self.clock.reset()
            self._drop("clock")
            return None
        round_trip_ns = self.clock.add(now_ns, frame.sent_ns, frame.echo_ns, frame.hold_us)
        if round_trip_ns is not None:
            self._echo_s_ns = now_ns
        age_ns = self.clock.age_ns(now_ns, frame.sent_ns)
        self.delays.add(frame.sequence, round_trip_ns, age_ns)
        if age_ns is None or now_ns - self._echo_s_ns > SYNCHRONISED_NS:
            self._drop("unsynchronised")
            return None
        # The measured age may be wrong by the clock's uncertainty; a command that counts is never older than both
        # together.
        if age_ns > self._max_age_ns:
            self._drop("old")
            return None
        if not all(map(math.isfinite, frame.angles_deg)):
            self._drop("not finite")
            return None
        self.counters["accepted"] += 1
        self.accepted, self.accepted_ns, self.accepted_age_ns = frame, now_ns, age_ns
        return frame.angles_deg

    def skip(self, session: int, sequence: object) -> None:
        """Drop the session's frames up to a number, which may still be on their way: the operator let go after them."""
        if session == self._session and isinstance(sequence, int):
            self._highest = max(self._highest, sequence)

    def _begin(self, session: int) -> None:
        self._session, self._highest = session, -1
        self._echo_s_ns = -SYNCHRONISED_NS
        self.clock.reset()
        self.delays = DelayStatistics()
        self.accepted = self.newest = None

    def _drop(self, reason: str) -> None:
        self.counters[reason] += 1
