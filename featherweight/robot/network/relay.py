"""The websocket relay of a room: authenticates, checks every topic, passes messages on; keeps none.

Participants show a certificate of the room and a token. The relay never waits for a slow one: each has an outbox in
which a newer command, state or picture replaces the older one.
"""

import ssl
from pathlib import Path
from typing import Any

from featherweight.robot.network.relay_room import RelayRoom
from featherweight.robot.network.socket_server import SocketServer


class Relay(SocketServer):
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
        folder = Path(folder)
        self._room = RelayRoom(folder)
        # Who has no certificate of this room does not get as far as a first message.
        context = relay_context(folder, ssl.CERT_REQUIRED) if tls else None
        super().__init__("relay", host, port, context, ping_timeout_s=4)

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

    def check(self, connection: Any, request: Any) -> Any:
        """Refuse who has no token of this room, or a certificate of another name than the token's."""
        if self._room.admit(connection, request, needs_certificate=self._context is not None):
            return None
        return connection.respond(401, "unknown participant\n")

    async def talk(self, socket: Any) -> None:
        """See `SocketServer.talk`."""
        await self._room.talk(socket)


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
