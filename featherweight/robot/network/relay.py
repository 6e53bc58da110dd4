"""The websocket relay of a room: authenticates, checks every topic, passes messages on; keeps none.

Participants show a certificate of the room and a token. The relay never waits for a slow one: each has an outbox in
which a newer command, state or picture replaces the older one.
"""

import asyncio
import hashlib
import hmac
import json
import ssl
import threading
from pathlib import Path
from typing import Any

from featherweight.errors import ConfigError, DeviceError
from featherweight.robot.network.topics import may_publish, may_subscribe
from featherweight.robot.network.transport import matches
from featherweight.robot.network.websocket import import_websockets
from featherweight.robot.network.wire import MAX_MESSAGE_BYTES, Outbox, unpack


class _Client:
    def __init__(self, socket: Any, name: str, role: str) -> None:
        self.socket, self.name, self.role = socket, name, role
        self.patterns: list[str] = []
        self.alive: list[str] = []
        self.outbox = Outbox()
        self.wakeup = asyncio.Event()


class Relay:
    """A relay in a thread; a context manager is made by `start` and `close`.

    Args:
        folder: that `fw robot class init` made; its relay.json names the members.
        host: address to listen on.
        port: 0 takes a free one.
        tls: False only on one computer, for tests.
    Raises:
        ConfigError: if the folder is not one of a room.
        DeviceError: if the port cannot be used.
    """

    def __init__(self, folder: str | Path, host: str = "127.0.0.1", port: int = 0, tls: bool = True) -> None:
        self._websockets = import_websockets()
        folder = Path(folder)
        try:
            settings = json.loads((folder / "relay.json").read_text())
            self.room: str = settings["room"]
            self._members: dict[str, dict[str, str]] = settings["members"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"robot: class={folder} is no folder of a room ({error}); expected relay.json. Make it with fw "
                f"robot class init."
            ) from error
        self.refused = 0
        """Connections, messages and subscriptions that were refused."""
        self._context: ssl.SSLContext | None = None
        if tls:
            self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._context.minimum_version = ssl.TLSVersion.TLSv1_2
            self._context.load_cert_chain(folder / "relay" / "cert.pem", folder / "relay" / "key.pem")
            self._context.load_verify_locations(folder / "ca.pem")
            # Who has no certificate of this room does not get as far as a first message.
            self._context.verify_mode = ssl.CERT_REQUIRED
        self._host, self._port = host, port
        self._clients: list[_Client] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ready = threading.Event()
        self._done: asyncio.Event | None = None
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="relay", daemon=True)

    @property
    def uri(self) -> str:
        """Where participants connect to."""
        return f"{'wss' if self._context else 'ws'}://{self._host}:{self._port}"

    def start(self) -> "Relay":
        """Listen."""
        self._thread.start()
        self._ready.wait(10)
        if self._failure is not None:
            raise DeviceError(
                f"robot: relay={self._host}:{self._port} cannot listen ({self._failure}); expected a free port. "
                f"Choose another."
            ) from self._failure
        return self

    def close(self) -> None:
        """End all connections."""
        if self._loop is not None and self._done is not None:
            self._loop.call_soon_threadsafe(self._done.set)
            self._thread.join(timeout=5)

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except Exception as error:  # told to the thread that started the relay
            self._failure = error
        finally:
            self._ready.set()

    async def _serve(self) -> None:
        self._loop, self._done = asyncio.get_running_loop(), asyncio.Event()
        server = await self._websockets.asyncio.server.serve(
            self._talk,
            self._host,
            self._port,
            ssl=self._context,
            process_request=self._check,
            compression=None,
            max_size=MAX_MESSAGE_BYTES,
            ping_interval=2,
            ping_timeout=4,
            close_timeout=0.5,
        )
        async with server:
            self._port = next(iter(server.sockets)).getsockname()[1]
            self._ready.set()
            await self._done.wait()

    def _check(self, connection: Any, request: Any) -> Any:
        """Refuse who has no token of this room, or a certificate of another name than the token's."""
        member = self._member(request.headers.get("Authorization", ""))
        subject = connection.transport.get_extra_info("peercert") or {}
        names = [value for part in subject.get("subject", ()) for key, value in part if key == "commonName"]
        if member is None or request.path.strip("/") != self.room or (self._context and member[0] not in names):
            self.refused += 1
            return connection.respond(401, "unknown participant\n")
        connection.member = member
        return None

    def _member(self, header: str) -> tuple[str, str] | None:
        digest = hashlib.sha256(header.removeprefix("Bearer ").encode()).hexdigest()
        for name, member in self._members.items():
            if hmac.compare_digest(digest, member["token_sha256"]):
                return name, member["role"]
        return None

    async def _talk(self, socket: Any) -> None:
        client = _Client(socket, *socket.member)
        self._clients.append(client)
        sender = asyncio.create_task(self._send(client))
        self._tell_roster()
        try:
            async for frame in socket:
                if isinstance(frame, str):
                    self._note(client, frame)
                else:
                    self._pass_on(client, frame)
        except self._websockets.exceptions.ConnectionClosed:
            pass
        finally:
            self._clients.remove(client)
            sender.cancel()
            self._tell_roster()

    def _note(self, client: _Client, text: str) -> None:
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
            and may_publish(client.role, alive, self.room, client.name)
            and len(client.alive) < 10
        ):
            client.alive.append(alive)
            self._tell_roster()

    def _pass_on(self, sender: _Client, frame: bytes) -> None:
        unpacked = unpack(frame)
        if unpacked is None or not may_publish(sender.role, unpacked[0], self.room, sender.name):
            self.refused += 1
            return
        topic, message = unpacked
        for client in self._clients:
            # The topic itself is checked, not the pattern: whatever a pattern says, nobody reads more than his role
            # allows.
            is_wanted = any(matches(pattern, topic) for pattern in client.patterns)
            if is_wanted and may_subscribe(client.role, topic, self.room, client.name):
                client.outbox.put(topic, message)
                client.wakeup.set()

    def _tell_roster(self) -> None:
        text = json.dumps({"roster": sorted(alive for client in self._clients for alive in client.alive)})
        for client in self._clients:
            client.outbox.put_text(text)
            client.wakeup.set()

    async def _send(self, client: _Client) -> None:
        while True:
            frame = client.outbox.get()
            if frame is None:
                client.wakeup.clear()
                await client.wakeup.wait()
                continue
            try:
                await client.socket.send(frame)
            except self._websockets.exceptions.ConnectionClosed:
                return
