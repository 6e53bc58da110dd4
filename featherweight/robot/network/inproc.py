"""A network inside the process, for tests and for one computer."""

import threading

from featherweight.robot.network.topics import ROLES, may_publish, may_subscribe
from featherweight.robot.network.transport import Callback, matches


class InprocBroker:
    """Where transports of one process meet; obeys the same access rules as the relay.

    Args:
        room: whose participants may join.
    """

    def __init__(self, room: str = "lab1") -> None:
        self.room = room
        self.refused = 0
        """Messages and subscriptions that the access rules dropped."""
        self._members: list[InprocTransport] = []
        self._lock = threading.Lock()

    def join(self, name: str, role: str) -> "InprocTransport":
        """Return a participant's transport."""
        assert role in ROLES
        transport = InprocTransport(self, name, role)
        with self._lock:
            self._members.append(transport)
        return transport

    def _deliver(self, sender: "InprocTransport", topic: str, message: bytes) -> None:
        if not may_publish(sender.role, topic, self.room, sender.name):
            self.refused += 1
            return
        with self._lock:
            members = list(self._members)
        for member in members:
            for pattern, callback in list(member.subscriptions):
                if matches(pattern, topic) and may_subscribe(member.role, topic, self.room, member.name):
                    callback(topic, message)


class InprocTransport:
    """One participant; see `Transport`."""

    def __init__(self, broker: InprocBroker, name: str, role: str) -> None:
        self.name, self.role = name, role
        self.subscriptions: list[tuple[str, Callback]] = []
        self._broker = broker
        self._alive: list[str] = []

    @property
    def is_connected(self) -> bool:
        """Always, until it is closed."""
        return self in self._broker._members

    def publish(self, topic: str, message: bytes) -> None:
        """Deliver in the caller's thread; after `close` it does nothing."""
        if self.is_connected:
            self._broker._deliver(self, topic, message)

    def subscribe(self, topic: str, callback: Callback) -> None:
        """See `Transport`."""
        self.subscriptions.append((topic, callback))

    def liveliness(self, topic: str) -> None:
        """See `Transport`."""
        self._alive.append(topic)

    def roster(self, topic: str) -> list[str]:
        """See `Transport`."""
        return sorted(
            alive for member in list(self._broker._members) for alive in member._alive if matches(topic, alive)
        )

    def close(self) -> None:
        """See `Transport`."""
        if self.is_connected:
            self._broker._members.remove(self)
