"""The websocket transport: TLS, works through every proxy of HTTPS, reconnects by itself."""

import json
import ssl
import threading
import time
from typing import Any

from featherweight.errors import DeviceError, MissingExtraError
from featherweight.robot.network.membership import Membership
from featherweight.robot.network.transport import Callback, matches
from featherweight.robot.network.wire import MAX_MESSAGE_BYTES, Outbox, unpack

BACKOFF_S = (0.2, 3.0)
CONNECT_WAIT_S = 6.0


def import_websockets() -> Any:
    """Import websockets, or say how to install it."""
    try:
        import websockets.asyncio.server
        import websockets.sync.client
    except ImportError as error:
        raise MissingExtraError(
            "robot: package=websockets is not installed; expected it for --relay wss://. Run pip install "
            "featherweight[robot]."
        ) from error
    return websockets


class WebSocketTransport:
    """A participant's connection to the relay; see `Transport`.

    Args:
        uri: "wss://host:port" of the relay.
        member: certificate, token and role of the participant.
    Raises:
        DeviceError: if the relay cannot be reached or refuses the participant; one sentence says why.
    """

    def __init__(self, uri: str, member: Membership) -> None:
        self._websockets = import_websockets()
        self._uri, self._member = f"{uri.rstrip('/')}/{member.room}", member
        self._outbox, self._wakeup = Outbox(), threading.Condition()
        self._subscriptions: list[tuple[str, Callback]] = []
        self._alive: list[str] = []
        self._roster: list[str] = []
        self._socket: Any = None
        self._stop = threading.Event()
        self._failure = ""
        self._threads = [threading.Thread(target=run, daemon=True) for run in (self._receive, self._send)]
        for thread in self._threads:
            thread.start()
        deadline_s = time.monotonic() + CONNECT_WAIT_S
        while self._socket is None and not self._failure and time.monotonic() < deadline_s:
            time.sleep(0.01)
        if self._socket is None:
            self.close()
            raise DeviceError(
                self._failure or f"robot: relay={uri} does not answer; expected a relay. Check address and network."
            )

    @property
    def is_connected(self) -> bool:
        """Whether the relay is there now."""
        return self._socket is not None

    def publish(self, topic: str, message: bytes) -> None:
        """See `Transport`; while the relay is gone, messages of lossy topics are dropped."""
        if self._socket is None:
            return
        with self._wakeup:
            self._outbox.put(topic, message)
            self._wakeup.notify()

    def subscribe(self, topic: str, callback: Callback) -> None:
        """See `Transport`."""
        self._subscriptions.append((topic, callback))
        self._tell({"subscribe": topic})

    def liveliness(self, topic: str) -> None:
        """See `Transport`."""
        self._alive.append(topic)
        self._tell({"alive": topic})

    def roster(self, topic: str) -> list[str]:
        """See `Transport`; as the relay told it last."""
        return [alive for alive in self._roster if matches(topic, alive)]

    def close(self) -> None:
        """Leave, after what waits was sent."""
        deadline_s = time.monotonic() + 0.3
        while self._socket is not None and not self._is_idle() and time.monotonic() < deadline_s:
            time.sleep(0.01)
        self._stop.set()
        with self._wakeup:
            self._wakeup.notify()
        socket = self._socket
        if socket is not None:
            try:
                socket.close()
            except OSError:
                pass  # it is gone already
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(timeout=2)

    def _is_idle(self) -> bool:
        return not self._outbox._ordered and not self._outbox._latest

    def _tell(self, message: dict[str, str]) -> None:
        with self._wakeup:
            self._outbox.put_text(json.dumps(message))
            self._wakeup.notify()

    def _receive(self) -> None:
        wait_s = BACKOFF_S[0]
        while not self._stop.is_set():
            try:
                context = self._member.client_context() if self._uri.startswith("wss:") else None
                with self._websockets.sync.client.connect(
                    self._uri,
                    ssl=context,
                    additional_headers={"Authorization": f"Bearer {self._member.token}"},
                    compression=None,
                    max_size=MAX_MESSAGE_BYTES,
                    open_timeout=5,
                    close_timeout=0.5,
                    ping_interval=2,
                    ping_timeout=4,
                ) as socket:
                    with self._wakeup:
                        # Nothing that waited from before the loss is sent: it is old.
                        self._outbox = Outbox()
                        for topic, _ in self._subscriptions:
                            self._outbox.put_text(json.dumps({"subscribe": topic}))
                        for topic in self._alive:
                            self._outbox.put_text(json.dumps({"alive": topic}))
                        self._socket = socket
                        self._wakeup.notify()
                    wait_s = BACKOFF_S[0]
                    for frame in socket:
                        self._take(frame)
            except Exception as error:  # every failure of a network ends here; the loop tries again
                self._failure = explain_connect(self._uri, error)
            self._socket = None
            self._stop.wait(wait_s)
            wait_s = min(2 * wait_s, BACKOFF_S[1])

    def _take(self, frame: str | bytes) -> None:
        if isinstance(frame, str):
            self._roster = list(json.loads(frame).get("roster", self._roster))
            return
        unpacked = unpack(frame)
        if unpacked is not None:
            for pattern, callback in list(self._subscriptions):
                if matches(pattern, unpacked[0]):
                    callback(*unpacked)

    def _send(self) -> None:
        while not self._stop.is_set():
            with self._wakeup:
                frame = self._outbox.get() if self._socket is not None else None
                if frame is None:
                    self._wakeup.wait(0.5)
                    continue
                socket = self._socket
            try:
                if socket is not None:
                    socket.send(frame)
            except Exception as error:  # the receiving thread sees the same and reconnects
                self._failure = self._failure or explain_connect(self._uri, error)
                time.sleep(0.02)


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
