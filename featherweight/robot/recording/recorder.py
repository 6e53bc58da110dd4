"""Takes frames of a running session at the rate of a data set."""

import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from featherweight.errors import ConfigError
from featherweight.robot.recording.video import Picture
from featherweight.robot.recording.writer import DemoWriter
from featherweight.robot.safety.mode import Mode


class Steered(Protocol):
    """What says where an arm shall go; `Controller` and `RoomView` do."""

    @property
    def mode(self) -> Mode:
        """What the arm does."""
        ...

    @property
    def goal_deg(self) -> tuple[float, ...] | None:
        """(6,) degrees in force."""
        ...


class Reporting(Protocol):
    """What says where an arm is; every follower does."""

    def reported_deg(self) -> tuple[float, ...]:
        """(6,) newest reported angles of the joints."""
        ...


class EpisodeRecorder:
    """Adds a frame to a writer each 1 / fps while the arm is ACTIVE; `look` is called after every control step.

    The action of a frame is the goal in force after all limits; the state is what the kit reported, in degrees.

    Args:
        writer: of the data set.
        follower: that is recorded.
        pictures: returns camera -> (H, W, 3) picture of now.
        extra: returns further features of now.
        clock: time in seconds.
    """

    def __init__(
        self,
        writer: DemoWriter,
        follower: Reporting,
        pictures: Callable[[], Mapping[str, Picture]] | None = None,
        extra: Callable[[], Mapping[str, Any]] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.writer, self.refused = writer, 0
        self.missing = ""
        """A camera that had no picture for a frame: frames after it would jump, so the episode is none any more."""
        self.repeated: Counter[str] = Counter()
        """Camera -> frames that show the same picture as the one before, because the camera was slower."""
        self._last: dict[str, Picture] = {}
        self._follower, self._pictures, self._extra, self._clock = follower, pictures, extra, clock
        self._due_s: float | None = None

    def look(self, steered: Steered) -> None:
        """Take a frame if it is time; one that is not whole is left out and counted, and none comes after a gap."""
        goal_deg = steered.goal_deg
        if steered.mode is not Mode.ACTIVE or goal_deg is None:
            self._due_s = None
            return
        now_s = self._clock()
        if self._due_s is None:
            self._due_s = now_s
        if now_s < self._due_s - 1e-6:
            return
        self._due_s = max(self._due_s + 1 / self.writer.fps, now_s - 1 / self.writer.fps)
        values = {"action": goal_deg, "observation.state": self._follower.reported_deg(), "observation.t_mono": now_s}
        pictures = dict(self._pictures()) if self._pictures else {}
        self.missing = self.missing or next((name for name in self.writer.cameras if name not in pictures), "")
        if self.missing:
            return
        try:
            self.writer.add({**values, **(self._extra() if self._extra else {})}, pictures)
        except ConfigError:
            self.refused += 1
            return
        self.repeated.update(name for name, picture in pictures.items() if self._last.get(name) is picture)
        self._last = pictures
