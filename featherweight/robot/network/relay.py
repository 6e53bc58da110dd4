"""The websocket relay of a room: authenticates, checks every topic, passes messages on; keeps none.

Participants show a certificate of the room and a token. The relay never waits for a slow one: each has an outbox in
which a newer command, state or picture replaces the older one.
"""

import asyncio
import ssl
import threading
from pathlib import Path
from typing import Any

from featherweight.errors import DeviceError
from featherweight.robot.network.relay_room import RelayRoom
from featherweight.robot.network.websocket import import_websockets
from featherweight.robot.network.wire import MAX_MESSAGE_BYTES


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
        self._room = RelayRoom(folder)
        self._context: ssl.SSLContext | None = None
        if tls:
            # Who has no certificate of this room does not get as far as a first message.
            self._context = relay_context(folder, ssl.CERT_REQUIRED)
        self._host, self._port = host, port
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ready = threading.Event()
        self._done: asyncio.Event | None = None
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="relay", daemon=True)

    @property
    def uri(self) -> str:
        """Where participants connect to."""
        return f"{'wss' if self._context else 'ws'}://{self._host}:{self._port}"

    @property
    def refused(self) -> int:
        """Connections, messages and subscriptions that were refused."""
        return self._room.refused

    @property
    def names(self) -> list[str]:
        """Who is connected."""
        return [client.name for client in self._room.clients]

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
            self._room.talk,
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
        if self._room.admit(connection, request, needs_certificate=self._context is not None):
            return None
        return connection.respond(401, "unknown participant\n")


def relay_context(folder: Path, verify: ssl.VerifyMode) -> ssl.SSLContext:
    """Return the TLS settings of a room's relay.

    Args:
        folder: of the room.
        verify: whether participants must show a certificate of its authority.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(folder / "relay" / "cert.pem", folder / "relay" / "key.pem")
    context.load_verify_locations(folder / "ca.pem")
    context.verify_mode = verify
    return context
