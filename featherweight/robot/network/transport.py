"""What both sides need of a network. Callbacks run in the transport's threads and must not block."""

from collections.abc import Callable
from typing import Protocol

Callback = Callable[[str, bytes], None]
"""Takes (topic, message)."""


class Transport(Protocol):
    """Publishes and subscribes messages by topic; "*" stands for one part of a topic, "**" for the rest.

    Commands, states and pictures may be lost, and only the newest counts; control messages arrive in order.
    """

    def publish(self, topic: str, message: bytes) -> None:
        """Send a message; never blocks for long, never raises when the link is gone."""
        ...

    def subscribe(self, topic: str, callback: Callback) -> None:
        """Call back for every message of matching topics."""
        ...

    def liveliness(self, topic: str) -> None:
        """Declare that this participant is there, for as long as the transport is open."""
        ...

    def roster(self, topic: str) -> list[str]:
        """Return the matching liveliness topics of all participants."""
        ...

    @property
    def is_connected(self) -> bool:
        """Whether messages can go out now."""
        ...

    def close(self) -> None:
        """Leave."""
        ...


def matches(pattern: str, topic: str) -> bool:
    """Return whether a topic matches a pattern.

    Example:
        >>> matches("fw/*/arm/state", "fw/lab/arm/state"), matches("fw/**", "fw/lab/arm/cmd"), matches("fw/*", "fw/a/b")
        (True, True, False)
    """
    wanted, parts = pattern.split("/"), topic.split("/")
    for i, want in enumerate(wanted):
        if want == "**":
            return True
        if i >= len(parts) or want not in ("*", parts[i]):
            return False
    return len(wanted) == len(parts)
