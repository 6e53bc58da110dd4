"""Websockets on one port, served by one thread: how it begins, who is let in, how it ends."""

import asyncio
import ssl
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Self

from featherweight.errors import DeviceError
from featherweight.robot.network.websocket import import_websockets
from featherweight.robot.network.wire import MAX_MESSAGE_BYTES


class SocketServer(ABC):
    """Serves sockets from `start` to `close`.

    Args:
        name: of the thread.
        host: address to listen on.
        port: 0 takes a free one.
        context: TLS settings; None only on this computer.
        ping_timeout_s: after which a peer that answers nothing is gone.
    """

    def __init__(
        self, name: str, host: str, port: int, context: ssl.SSLContext | None, *, ping_timeout_s: float
    ) -> None:
        self._websockets = import_websockets()
        self._host, self._port, self._context, self._ping_timeout_s = host, port, context, ping_timeout_s
        self._loop: asyncio.AbstractEventLoop | None = None
        self._done: asyncio.Event | None = None
        self._ready = threading.Event()
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    @property
    def port(self) -> int:
        """Where it listens."""
        return self._port

    def start(self) -> Self:
        """Listen.

        Raises:
            DeviceError: if the port cannot be used.
        """
        self._thread.start()
        self._ready.wait(10)
        if self._failure is not None:
            raise DeviceError(
                f"robot: port={self._port} of {self._host} cannot be used ({self._failure}); expected a free one. "
                "End the other server, or choose another port."
            ) from self._failure
        return self

    def call(self, function: Callable[[], None]) -> None:
        """Call a function in the server's thread, soon."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(function)

    def close(self) -> None:
        """End all connections."""
        if self._loop is not None and self._done is not None:
            self._loop.call_soon_threadsafe(self._done.set)
            self._thread.join(timeout=5)

    # ---- the server's thread

    @abstractmethod
    def check(self, connection: Any, request: Any) -> Any:
        """Return None to let a request become a socket, else the response that it gets."""

    @abstractmethod
    async def talk(self, socket: Any) -> None:
        """Serve a socket until it ends."""

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except Exception as error:  # told to the thread that started the server
            self._failure = error
        finally:
            self._ready.set()

    async def _serve(self) -> None:
        self._loop, self._done = asyncio.get_running_loop(), asyncio.Event()
        server = await self._websockets.asyncio.server.serve(
            self.talk,
            self._host,
            self._port,
            ssl=self._context,
            process_request=self.check,
            compression=None,
            max_size=MAX_MESSAGE_BYTES,
            ping_interval=2,
            ping_timeout=self._ping_timeout_s,
            close_timeout=0.5,
        )
        async with server:
            self._port = next(iter(server.sockets)).getsockname()[1]
            self._ready.set()
            await self._done.wait()
