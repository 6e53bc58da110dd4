"""Names of topics, and who may use them."""

import re
from dataclasses import dataclass

from featherweight.errors import ConfigError

ROLES = ("robot", "operator", "instructor", "observer")
LOSSY = ("cmd", "state", "cam")
"""Kinds of topics of which only the newest message counts."""


@dataclass(frozen=True)
class Topics:
    """The topics of one robot in one room.

    Example:
        >>> Topics("lab1", "arm1").cmd
        'fw/lab1/arm1/cmd'
    """

    room: str
    robot: str

    def __post_init__(self) -> None:
        for name, value in (("room", self.room), ("robot", self.robot)):
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", value):
                raise ConfigError(
                    f"robot: {name}={value!r} is no name; expected letters, digits, '.', '_', '-'. Rename it."
                )

    @property
    def root(self) -> str:
        """Begin of all topics of the robot."""
        return f"fw/{self.room}/{self.robot}"

    @property
    def cmd(self) -> str:
        """Command frames of the operator."""
        return f"{self.root}/cmd"

    @property
    def state(self) -> str:
        """State frames of the robot."""
        return f"{self.root}/state"

    @property
    def status(self) -> str:
        """Mode, holder and counters as JSON, twice a second."""
        return f"{self.root}/status"

    @property
    def news(self) -> str:
        """What the simulator of a classroom tells its server as JSON: challenge, recording, score."""
        return f"{self.root}/status/class"

    @property
    def ctl(self) -> str:
        """Requests of operators as JSON: request, release, stop."""
        return f"{self.root}/ctl"

    @property
    def instructor(self) -> str:
        """Requests of instructors as JSON: request, release, stop, reset."""
        return f"{self.root}/ctl-instructor"

    def camera(self, name: str) -> str:
        """Pictures of a camera as JPEG."""
        return f"{self.root}/cam/{name}"

    def alive(self, name: str) -> str:
        """Liveliness of a participant."""
        return f"fw/{self.room}/{name}/alive"


def may_publish(role: str, topic: str, room: str, name: str) -> bool:
    """Return whether a participant may send to a topic; everything that is not named is refused."""
    parts = topic.split("/")
    if len(parts) < 4 or parts[0] != "fw" or parts[1] != room:
        return False
    if parts[3] == "alive":
        return parts[2] == name and len(parts) == 4
    kinds = {
        "robot": {"state", "status", "cam"},
        "operator": {"cmd", "ctl"},
        "instructor": {"cmd", "ctl", "ctl-instructor"},
        "observer": set[str](),
    }
    is_own = role != "robot" or parts[2] == name
    return is_own and parts[3] in kinds.get(role, set())


def may_subscribe(role: str, topic: str, room: str, name: str) -> bool:
    """Return whether a participant may read a topic: robots their commands, the others what robots say."""
    parts = topic.split("/")
    if len(parts) < 4 or parts[0] != "fw" or parts[1] != room:
        return False
    if role == "robot":
        return parts[2] == name and parts[3] in ("cmd", "ctl", "ctl-instructor")
    return role in ROLES and parts[3] in ("state", "status", "cam", "alive")
