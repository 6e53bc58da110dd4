"""The websocket transport: TLS, works through every proxy of HTTPS, reconnects by itself."""

import asyncio
import contextlib
import json
import ssl
import threading
import time
from collections.abc import Callable
from typing import Any

from featherweight.errors import DeviceError, MissingExtraError
from featherweight.robot.network.membership import Membership
from featherweight.robot.network.transport import Callback, matches
from featherweight.robot.network.wire import MAX_MESSAGE_BYTES, Outbox, unpack

BACKOFF_S = (0.2, 3.0)
OPEN_TIMEOUT_S = 5.0
CONNECT_WAIT_S = 2 * OPEN_TIMEOUT_S
"""The attempt ends by itself after `OPEN_TIMEOUT_S`; a busy machine may be late to say so."""


def import_websockets() -> Any:
    """Import websockets, or say how to install it."""
    try:
        import websockets.asyncio.client
        import websockets.asyncio.server
    except ImportError as error:
        raise MissingExtraError(
            "robot: package=websockets is not installed; expected it for --relay wss://. Run pip install "
            "featherweight[robot]."
        ) from error
    return websockets


class WebSocketTransport:
    """A participant's connection to the relay; see `Transport`.

    One thread reads and writes the socket: two threads in one TLS connection corrupt it, and a handshake hangs.

    Args:
        uri: "wss://host:port" of the relay.
        member: certificate, token and role of the participant.
    Raises:
        DeviceError: if the relay cannot be reached or refuses the participant; one sentence says why.
    """

    def __init__(self, uri: str, member: Membership) -> None:
        self._websockets = import_websockets()
        self._uri, self._member = f"{uri.rstrip('/')}/{member.room}", member
        self._outbox, self._lock = Outbox(), threading.Lock()
        self._subscriptions: list[tuple[str, Callback]] = []
        self._alive: list[str] = []
        self._roster: list[str] = []
        self._is_connected = False
        self._failure = ""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stay: asyncio.Task[None] | None = None
        self._wakeup = asyncio.Event()
        self._tried = threading.Event()
        self._thread = threading.Thread(target=self._run, name="websocket", daemon=True)
        self._thread.start()
        if not self._tried.wait(CONNECT_WAIT_S):
            self._failure = f"robot: relay={uri} does not answer; expected a relay. Check address and network."
        if self._failure:
            failure = self._failure
            self.close()
            raise DeviceError(failure)

    @property
    def is_connected(self) -> bool:
        """Whether the relay is there now."""
        return self._is_connected

    def publish(self, topic: str, message: bytes) -> None:
        """See `Transport`; while the relay is gone, messages are dropped."""
        if self._is_connected:
            with self._lock:
                self._outbox.put(topic, message)
            self._call(self._wakeup.set)

    def subscribe(self, topic: str, callback: Callback) -> None:
        """See `Transport`."""
        with self._lock:
            self._subscriptions.append((topic, callback))
            self._outbox.put_text(json.dumps({"subscribe": topic}))
        self._call(self._wakeup.set)

    def liveliness(self, topic: str) -> None:
        """See `Transport`."""
        with self._lock:
            self._alive.append(topic)
            self._outbox.put_text(json.dumps({"alive": topic}))
        self._call(self._wakeup.set)

    def roster(self, topic: str) -> list[str]:
        """See `Transport`; as the relay told it last."""
        return [alive for alive in self._roster if matches(topic, alive)]

    def close(self) -> None:
        """Leave, after what waits was sent."""
        is_own_thread = self._thread is threading.current_thread()
        deadline_s = time.monotonic() + 0.3
        while self._is_connected and not is_own_thread and self._outbox and time.monotonic() < deadline_s:
            time.sleep(0.01)
        if self._stay is not None:
            self._call(self._stay.cancel)
        if not is_own_thread:
            self._thread.join(timeout=2)

    def _call(self, function: Callable[[], object]) -> None:
        """Call a function in the thread of the socket, soon; never after its end."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(function)

    # ---- the thread of the socket

    def _run(self) -> None:
        with contextlib.suppress(asyncio.CancelledError):  # `close`
            asyncio.run(self._keep_connected())

    async def _keep_connected(self) -> None:
        self._loop, self._stay = asyncio.get_running_loop(), asyncio.current_task()
        wait_s = BACKOFF_S[0]
        while True:
            try:
                context = self._member.client_context() if self._uri.startswith("wss:") else None
                async with self._websockets.asyncio.client.connect(
                    self._uri,
                    ssl=context,
                    additional_headers={"Authorization": f"Bearer {self._member.token}"},
                    compression=None,
                    max_size=MAX_MESSAGE_BYTES,
                    open_timeout=OPEN_TIMEOUT_S,
                    close_timeout=0.5,
                    ping_interval=2,
                    ping_timeout=4,
                ) as socket:
                    wait_s = BACKOFF_S[0]
                    await self._talk(socket)
            except Exception as error:  # every failure of a network ends here; the loop tries again
                self._failure = explain_connect(self._uri, error)
            finally:
                self._is_connected = False
                self._tried.set()
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, BACKOFF_S[1])

    async def _talk(self, socket: Any) -> None:
        """Send and receive until the connection ends."""
        with self._lock:
            # Nothing that waited from before the loss is sent: it is old.
            self._outbox = Outbox()
            for topic, _ in self._subscriptions:
                self._outbox.put_text(json.dumps({"subscribe": topic}))
            for topic in self._alive:
                self._outbox.put_text(json.dumps({"alive": topic}))
            self._is_connected = True
        self._tried.set()
        sender = asyncio.create_task(self._send(socket))
        try:
            async for frame in socket:
                self._take(frame)
        finally:
            sender.cancel()

    def _take(self, frame: str | bytes) -> None:
        if isinstance(frame, str):
            self._roster = list(json.loads(frame).get("roster", self._roster))
            return
        unpacked = unpack(frame)
        if unpacked is not None:
            for pattern, callback in list(self._subscriptions):
                if matches(pattern, unpacked[0]):
                    callback(*unpacked)

    async def _send(self, socket: Any) -> None:
        with contextlib.suppress(self._websockets.exceptions.ConnectionClosed):  # the receiving side sees the same
            while True:
                with self._lock:
                    frame = self._outbox.get()
                if frame is None:
                    self._wakeup.clear()
                    await self._wakeup.wait()
                else:
                    await socket.send(frame)


def explain_connect(uri: str, error: Exception) -> str:
    """Say in one sentence why a relay cannot be used."""
    text = " ".join(str(error).split())
    if isinstance(error, ssl.SSLError) or "certificate" in text.lower() or "UNKNOWN_CA" in text:
        return (
            f"robot: relay={uri} and this participant do not trust each other ({text}); expected certificates "
            f"of one room. "
            "Use the files that fw robot class init made for this room."
        )
    if "HTTP 401" in text or "HTTP 403" in text:
        return (
            f"robot: relay={uri} does not know this participant; expected a member of its room. "
            "Use the files that fw robot class init made for this room."
        )
    reason = text or type(error).__name__
    return f"robot: relay={uri} cannot be reached ({reason}); expected a relay. Check address and network."
