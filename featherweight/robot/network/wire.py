"""Messages of the websocket transport: a topic and a message in one binary frame; JSON for everything else."""

import struct
from collections import OrderedDict, deque

from featherweight.robot.network.topics import LOSSY

_LENGTH = struct.Struct("<H")
MAX_MESSAGE_BYTES = 1 << 20
MAX_WAITING = 1000


def pack(topic: str, message: bytes) -> bytes:
    """Put topic and message into one frame."""
    name = topic.encode()
    return _LENGTH.pack(len(name)) + name + message


def unpack(frame: bytes) -> tuple[str, bytes] | None:
    """Return (topic, message), or None if the frame is malformed."""
    if len(frame) < _LENGTH.size:
        return None
    end = _LENGTH.size + _LENGTH.unpack_from(frame)[0]
    try:
        return (frame[_LENGTH.size : end].decode(), frame[end:]) if len(frame) >= end else None
    except UnicodeDecodeError:
        return None


class Outbox:
    """What waits to be sent to one peer: of lossy topics the newest message, of the others all in order.

    So a slow peer gets few fresh commands, states and pictures instead of many old ones.
    """

    def __init__(self) -> None:
        self._latest: OrderedDict[str, bytes] = OrderedDict()
        self._ordered: deque[str | bytes] = deque(maxlen=MAX_WAITING)

    def __bool__(self) -> bool:
        """Whether something waits."""
        return bool(self._ordered or self._latest)

    def put(self, topic: str, message: bytes) -> None:
        """Add a message."""
        kind = topic.split("/")[3] if topic.count("/") >= 3 else ""
        if kind in LOSSY:
            self._latest[topic] = message
        else:
            self._ordered.append(pack(topic, message))

    def put_text(self, text: str) -> None:
        """Add JSON."""
        self._ordered.append(text)

    def get(self) -> str | bytes | None:
        """Take what goes out next; control messages first."""
        if self._ordered:
            return self._ordered.popleft()
        if self._latest:
            topic, message = self._latest.popitem(last=False)
            return pack(topic, message)
        return None
