"""One room of a relay: who is in it, who may say what to whom. It belongs to the thread of one event loop.

Participants come through sockets, or stand in this process (`join`), under the same rules.
"""

import asyncio
import hashlib
import hmac
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from featherweight.errors import ConfigError
from featherweight.robot.network.topics import may_publish, may_subscribe
from featherweight.robot.network.transport import Callback, matches
from featherweight.robot.network.websocket import import_websockets
from featherweight.robot.network.wire import Outbox, unpack

Gate = Callable[[str, str, str, bytes], bool]
"""Takes (name, role, topic, message) of what the roles allow; returns whether it passes."""


class RelayRoom:
    """A room.

    Args:
        folder: that `fw robot class init` made; its relay.json names the members.
        gate: a further rule beside the roles; None for none.
    Raises:
        ConfigError: if the folder is not one of a room.
    """

    def __init__(self, folder: str | Path, gate: Gate | None = None) -> None:
        folder = Path(folder)
        try:
            settings = json.loads((folder / "relay.json").read_text())
            self.name: str = settings["room"]
            self.members: dict[str, dict[str, str]] = settings["members"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"robot: class={folder} is no folder of a room ({error}); expected relay.json. Make it with fw "
                f"robot class init."
            ) from error
        self.gate = gate
        self.refused = 0
        """Connections, messages and subscriptions that were refused."""
        self.clients: list[_Client] = []
        self._closed = import_websockets().exceptions.ConnectionClosed

    def member(self, token: str) -> tuple[str, str] | None:
        """Return (name, role) of a token; None for nobody."""
        digest = hashlib.sha256(token.encode()).hexdigest()
        for name, member in self.members.items():
            if hmac.compare_digest(digest, member["token_sha256"]):
                return name, member["role"]
        return None

    def admit(self, connection: Any, request: Any, needs_certificate: bool) -> bool:
        """Return whether a connection's token is one of this room and its certificate has the same name."""
        member = self.member(request.headers.get("Authorization", "").removeprefix("Bearer "))
        subject = connection.transport.get_extra_info("peercert") or {}
        names = [value for part in subject.get("subject", ()) for key, value in part if key == "commonName"]
        if member is None or request.path.strip("/") != self.name or (needs_certificate and member[0] not in names):
            self.refused += 1
            return False
        connection.member = member
        return True

    def join(self, name: str, role: str) -> "RoomTransport":
        """Return a transport for a participant in this process; for the thread of the event loop."""
        return RoomTransport(self, name, role)

    async def talk(self, socket: Any) -> None:
        """Serve one admitted connection until it ends."""
        client = _Client(socket, *socket.member)
        self.clients.append(client)
        sender = asyncio.create_task(self._send(client))
        self.tell_roster()
        try:
            async for frame in socket:
                if isinstance(frame, str):
                    self._note(client, frame)
                else:
                    self._take(client, frame)
        except self._closed:
            pass
        finally:
            self.clients.remove(client)
            sender.cancel()
            self.tell_roster()

    def pass_on(self, name: str, role: str, topic: str, message: bytes) -> None:
        """Give a message to who wants it and may have it, if its sender may say it."""
        if not may_publish(role, topic, self.name, name) or (
            self.gate is not None and not self.gate(name, role, topic, message)
        ):
            self.refused += 1
            return
        for client in list(self.clients):
            # The topic itself is checked, not the pattern: whatever a pattern says, nobody reads more than his role
            # allows.
            is_wanted = any(matches(pattern, topic) for pattern in client.patterns)
            if is_wanted and may_subscribe(client.role, topic, self.name, client.name):
                client.give(topic, message)

    def roster(self) -> list[str]:
        """Return the liveliness topics of all participants."""
        return sorted(alive for client in self.clients for alive in client.alive)

    def tell_roster(self) -> None:
        """Tell everybody who is there."""
        text = json.dumps({"roster": self.roster()})
        for client in self.clients:
            client.tell(text)

    def _note(self, client: "_Client", text: str) -> None:
        try:
            message = json.loads(text)
            pattern, alive = message.get("subscribe"), message.get("alive")
        except (ValueError, AttributeError):
            self.refused += 1
            return
        if isinstance(pattern, str) and len(client.patterns) < 100:
            client.patterns.append(pattern)
        if (
            isinstance(alive, str)
            and may_publish(client.role, alive, self.name, client.name)
            and len(client.alive) < 10
        ):
            client.alive.append(alive)
            self.tell_roster()

    def _take(self, client: "_Client", frame: bytes) -> None:
        unpacked = unpack(frame)
        if unpacked is None:
            self.refused += 1
        else:
            self.pass_on(client.name, client.role, *unpacked)

    async def _send(self, client: "_Client") -> None:
        while True:
            frame = client.outbox.get()
            if frame is None:
                client.wakeup.clear()
                await client.wakeup.wait()
                continue
            try:
                await client.socket.send(frame)
            except self._closed:
                return


class _Client:
    """A participant behind a socket."""

    def __init__(self, socket: Any, name: str, role: str) -> None:
        self.socket, self.name, self.role = socket, name, role
        self.patterns: list[str] = []
        self.alive: list[str] = []
        self.outbox = Outbox()
        self.wakeup = asyncio.Event()

    def give(self, topic: str, message: bytes) -> None:
        """Send later; a newer command, state or picture replaces the older one."""
        self.outbox.put(topic, message)
        self.wakeup.set()

    def tell(self, text: str) -> None:
        """Send JSON later."""
        self.outbox.put_text(text)
        self.wakeup.set()


class RoomTransport(_Client):
    """A participant in the relay's process; see `Transport`."""

    def __init__(self, room: RelayRoom, name: str, role: str) -> None:
        super().__init__(None, name, role)
        self._room = room
        self._callbacks: list[tuple[str, Callback]] = []
        room.clients.append(self)

    @property
    def is_connected(self) -> bool:
        """Whether it has not been closed."""
        return self in self._room.clients

    def publish(self, topic: str, message: bytes) -> None:
        """See `Transport`; after `close` it does nothing."""
        if self.is_connected:
            self._room.pass_on(self.name, self.role, topic, message)

    def subscribe(self, topic: str, callback: Callback) -> None:
        """See `Transport`."""
        self.patterns.append(topic)
        self._callbacks.append((topic, callback))

    def liveliness(self, topic: str) -> None:
        """See `Transport`."""
        if may_publish(self.role, topic, self._room.name, self.name):
            self.alive.append(topic)
            self._room.tell_roster()

    def roster(self, topic: str) -> list[str]:
        """See `Transport`."""
        return [alive for alive in self._room.roster() if matches(topic, alive)]

    def close(self) -> None:
        """See `Transport`."""
        if self.is_connected:
            self._room.clients.remove(self)

    def give(self, topic: str, message: bytes) -> None:
        """Call back at once."""
        for pattern, callback in list(self._callbacks):
            if matches(pattern, topic):
                callback(topic, message)

    def tell(self, text: str) -> None:
        """Nothing: who is here asks."""
