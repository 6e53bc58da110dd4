"""Where pages come from: who may open one, and by which transport it speaks to which robot."""

import asyncio
import hmac
import threading
from collections.abc import Callable
from typing import Any, Protocol

from featherweight.errors import ConfigError
from featherweight.robot.driver.umirobot import UMIRobot
from featherweight.robot.network.follower_side import serve
from featherweight.robot.network.impaired import Impaired, Impairment
from featherweight.robot.network.inproc import InprocBroker
from featherweight.robot.network.topics import Topics
from featherweight.robot.network.transport import Transport
from featherweight.robot.safety.config import SafetyConfig
from featherweight.robot.web.session import Visitor

LOCAL_ROOM, LOCAL_ROBOT = "here", "arm1"


class PageRoom(Protocol):
    """A room whose robots pages may look at and drive."""

    name: str
    """Of the room."""

    def admit(self, token: str) -> Visitor | None:
        """Return who has a token; None for nobody."""
        ...

    def robots(self, visitor: Visitor) -> list[str]:
        """Return the robots that a visitor may see, the own one first."""
        ...

    async def join(self, visitor: Visitor) -> Transport:
        """Return a transport for one page.

        Raises:
            DeviceError: if the room cannot be reached.
        """
        ...

    def told(self, visitor: Visitor, robot: str) -> dict[str, Any] | None:
        """Return what pages show beside the robot's state: "class" and "scene"; None for nothing."""
        ...

    def left(self, visitor: Visitor, robot: str) -> None:
        """A page was closed."""
        ...

    def ask(self, visitor: Visitor, robot: str, request: dict[str, Any]) -> None:
        """Take a request of a page that is none to the robot."""
        ...

    def upload(self, visitor: Visitor, data: bytes) -> None:
        """Take a piece of a file that a page announced.

        Raises:
            ConfigError: if nothing is taken here.
        """
        ...


class _OneToken:
    """A room with one token and nothing to tell."""

    def __init__(self, token: str, robot: str, role: str, member: str | None = None) -> None:
        self._token, self._robot, self._role, self._member = token, robot, role, member
        self._count = 0

    def admit(self, token: str) -> Visitor | None:
        """See `PageRoom`."""
        if not hmac.compare_digest(token.encode(), self._token.encode()):
            return None
        self._count += 1
        return Visitor(self._member or f"page{self._count}", self._role)

    def robots(self, visitor: Visitor) -> list[str]:
        """See `PageRoom`."""
        return [self._robot]

    def told(self, visitor: Visitor, robot: str) -> dict[str, Any] | None:
        """See `PageRoom`."""
        return None

    def left(self, visitor: Visitor, robot: str) -> None:
        """See `PageRoom`."""

    def ask(self, visitor: Visitor, robot: str, request: dict[str, Any]) -> None:
        """See `PageRoom`."""

    def upload(self, visitor: Visitor, data: bytes) -> None:
        """See `PageRoom`."""
        raise ConfigError("web: files are taken in a classroom alone; expected none. Open the page of a class.")


class LocalRoom(_OneToken):
    """A robot of this process, behind the follower's side of a network session.

    Args:
        robot: connected; stays the caller's.
        token: of the pages.
        impairment: of both ways, to feel a slow network; None for none.
        safety: limits.
        camera_fps: pictures a second.
    """

    name = LOCAL_ROOM

    def __init__(
        self,
        robot: UMIRobot,
        token: str,
        impairment: Impairment | None = None,
        safety: SafetyConfig | None = None,
        camera_fps: float = 15.0,
    ) -> None:
        super().__init__(token, LOCAL_ROBOT, "operator")
        self._broker, self._impairment, self._stop = InprocBroker(LOCAL_ROOM), impairment, threading.Event()
        transport = self._impaired(self._broker.join(LOCAL_ROBOT, "robot"))
        self._close_robot = transport.close
        arguments = (robot, transport, Topics(LOCAL_ROOM, LOCAL_ROBOT), safety, self._stop, camera_fps)
        self._thread = threading.Thread(target=serve, args=arguments, name="follower", daemon=True)
        self._thread.start()

    async def join(self, visitor: Visitor) -> Transport:
        """See `PageRoom`."""
        return self._impaired(self._broker.join(visitor.name, visitor.role))

    def close(self) -> None:
        """End the follower's side; the arm is held."""
        self._stop.set()
        self._thread.join(timeout=5)
        self._close_robot()

    def _impaired(self, transport: Transport) -> Transport:
        return transport if self._impairment is None else Impaired(transport, self._impairment)


class RemoteRoom(_OneToken):
    """A robot of a network room; every page is a session of one member.

    Args:
        name: of the room.
        robot: in it.
        member: name of the member, under which others see the pages.
        role: of the member.
        token: of the pages.
        connect: opens the member's transport.
    """

    def __init__(
        self, name: str, robot: str, member: str, role: str, token: str, connect: Callable[[], Transport]
    ) -> None:
        super().__init__(token, robot, role, member)
        self.name, self._connect = name, connect

    async def join(self, visitor: Visitor) -> Transport:
        """See `PageRoom`; opening takes a moment, which the other pages must not wait for."""
        return await asyncio.to_thread(self._connect)
