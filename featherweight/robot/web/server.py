"""The server of the page: its files and its sockets on one port, in one thread, with what the robot's network uses.

A page opens ``/`` (or ``/<room>/``) and a socket at ``page`` beside it, and says its token there first.
"""

import asyncio
import functools
import json
import ssl
from collections import Counter
from collections.abc import Mapping
from typing import Any

from featherweight.errors import ConfigError, DeviceError
from featherweight.robot.network.relay_room import RelayRoom
from featherweight.robot.network.socket_server import SocketServer
from featherweight.robot.network.topics import Topics
from featherweight.robot.safety.config import SafetyConfig
from featherweight.robot.web.files import HEADERS, is_own_host, read_page
from featherweight.robot.web.rooms import PageRoom
from featherweight.robot.web.session import MAX_PAGE_BYTES, PageSession

HELLO_S = 10.0
"""Time for the token."""
STATE_S = 1 / 20
"""Between states."""
MAX_PAGES = 100


class WebServer(SocketServer):
    """Pages of one or more rooms; `start` and `close` it.

    Args:
        rooms: path -> room; "" for the room at the root.
        host: address to listen on.
        port: 0 takes a free one.
        context: TLS settings; None only on this computer.
        hosts: names under which browsers reach it; empty for any.
        safety: limits of age.
        relays: name -> room of the network whose participants use the same port, at ``/<name>``.
    Raises:
        DeviceError: if the port cannot be used.
    """

    def __init__(
        self,
        rooms: Mapping[str, PageRoom],
        host: str = "127.0.0.1",
        port: int = 0,
        context: ssl.SSLContext | None = None,
        hosts: frozenset[str] = frozenset({"127.0.0.1", "localhost"}),
        safety: SafetyConfig | None = None,
        relays: Mapping[str, RelayRoom] | None = None,
    ) -> None:
        super().__init__("pages", host, port, context, ping_timeout_s=6)
        self.counters: Counter[str] = Counter()
        self._rooms, self._hosts, self._safety = dict(rooms), hosts, safety
        self._files, self._relays = read_page(), dict(relays or {})
        self._sessions: set[PageSession] = set()

    @property
    def uri(self) -> str:
        """Address of the page."""
        return f"{'https' if self._context else 'http'}://{self._host}:{self._port}/"

    def check(self, connection: Any, request: Any) -> Any:
        """Answer a request of a file; let a socket of our own page, or of a participant of a room, through."""
        if "Authorization" in request.headers:
            relay = self._relays.get(request.path.strip("/"))
            if relay is None or not relay.admit(connection, request, needs_certificate=self._context is not None):
                return connection.respond(401, "unknown participant\n")
            connection.talk = relay.talk
            return None
        if not is_own_host(request.headers, self._hosts):
            self.counters["foreign"] += 1
            return connection.respond(403, "This address belongs to another page.\n")
        path = request.path.split("?", 1)[0].lstrip("/")
        room, _, file = path.rpartition("/")
        if file and not room and file in self._rooms:
            response = connection.respond(308, "")
            response.headers["Location"] = f"/{file}/"
            return response
        if room not in self._rooms:
            return connection.respond(404, "Nothing is here.\n")
        if file == "page" and request.headers.get("Upgrade", "").lower() == "websocket":
            connection.talk = functools.partial(self._talk, self._rooms[room])
            return None
        if file not in self._files:
            return connection.respond(404, "Nothing is here.\n")
        kind, data = self._files[file]
        response = connection.respond(200, "")
        response.body = data
        del response.headers["Content-Type"], response.headers["Content-Length"]
        for name, value in {**HEADERS, "Content-Type": kind, "Content-Length": str(len(data))}.items():
            response.headers[name] = value
        return response

    async def talk(self, socket: Any) -> None:
        """Serve a socket as whoever it was let in as."""
        await socket.talk(socket)

    async def _talk(self, room: PageRoom, socket: Any) -> None:
        try:
            welcomed = await self._welcome(room, socket)
            if welcomed is not None:
                await self._run_session(socket, *welcomed)
        except (self._websockets.exceptions.ConnectionClosed, TimeoutError):
            pass
        except ValueError:  # of whoever speaks here without being a page
            self.counters["malformed"] += 1

    async def _welcome(self, room: PageRoom, socket: Any) -> tuple[PageRoom, PageSession, str] | None:
        """Take the token; return the session, or None after a sentence."""
        hello = parse(await asyncio.wait_for(socket.recv(), HELLO_S))
        visitor = room.admit(str(hello.get("hello", "")))
        if visitor is None:
            self.counters["wrong token"] += 1
            await asyncio.sleep(0.2)  # guessing is slow
            await self._refuse(socket, "token", "The key of this page is wrong or old.")
            return None
        robots = room.robots(visitor)
        robot = str(hello.get("robot") or (robots[0] if robots else ""))
        if robot not in robots:
            await self._refuse(socket, "robot", f"There is no robot {robot or 'here'} for you.")
            return None
        if len(self._sessions) >= MAX_PAGES:
            await self._refuse(socket, "full", "Too many pages are open.")
            return None
        try:
            transport = await room.join(visitor)
        except (DeviceError, ConfigError) as error:
            await self._refuse(socket, "room", str(error))
            return None
        session = PageSession(visitor, transport, Topics(room.name, robot), self._safety)
        told = {"hello": visitor.name, "role": visitor.role, "robots": robots, "robot": robot, "room": room.name}
        await socket.send(json.dumps(told))
        return room, session, robot

    async def _refuse(self, socket: Any, key: str, text: str) -> None:
        await socket.send(json.dumps({"error": key, "text": text}))
        await socket.close(4000, key)

    async def _run_session(self, socket: Any, room: PageRoom, session: PageSession, robot: str) -> None:
        self._sessions.add(session)
        tasks = [
            asyncio.create_task(self._step(session)),
            asyncio.create_task(self._send(socket, room, session, robot)),
        ]
        try:
            async for text in socket:
                self._take(room, session, robot, text)
        except self._websockets.exceptions.ConnectionClosed:
            pass
        finally:
            self._sessions.discard(session)
            for task in tasks:
                task.cancel()
            session.close_control()
            room.left(session.visitor, robot)
            # A transport may wait for its last messages; the other pages must not.
            await asyncio.shield(asyncio.to_thread(session.close_transport))

    def _take(self, room: PageRoom, session: PageSession, robot: str, text: str | bytes) -> None:
        try:
            if isinstance(text, bytes):
                room.upload(session.visitor, text)
                return
            message = parse(text)
            if "class" in message:
                room.ask(session.visitor, robot, message["class"])
            else:
                session.take(message)
        except ConfigError:
            self.counters["malformed"] += 1

    async def _step(self, session: PageSession) -> None:
        while True:
            try:
                session.step()
            except Exception:  # a fault of ours must not end the loop that tells the robot when a page falls silent
                self.counters["internal errors"] += 1
                session.leader.release()
            await asyncio.sleep(session.pause_s)

    async def _send(self, socket: Any, room: PageRoom, session: PageSession, robot: str) -> None:
        while True:
            state, picture = session.state_message(room.told(session.visitor, robot)), session.picture_message()
            for message in (state, picture):
                if message is not None:
                    await socket.send(message)
            await asyncio.sleep(STATE_S)


def parse(text: str | bytes) -> dict[str, Any]:
    """Return the object of a message.

    Raises:
        ConfigError: if it is none.
    """
    if len(text) > MAX_PAGE_BYTES:
        raise ConfigError(
            f"web: message={len(text)} bytes is too long; expected at most {MAX_PAGE_BYTES}. Load the page again."
        )
    try:
        message = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"web: message={str(text)[:80]!r} is no JSON; expected an object. Load the page.") from error
    if not isinstance(message, dict):
        raise ConfigError(f"web: message={str(text)[:80]!r} is no object; expected one. Load the page again.")
    return message
