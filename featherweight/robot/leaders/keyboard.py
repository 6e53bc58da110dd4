"""A leader for everybody: the keys of a terminal. No extra package; Linux, macOS and Windows."""

import sys
import threading
import time
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from featherweight.config import Config
from featherweight.errors import DeviceError
from featherweight.robot.contract import Action, Teleoperator, keyed_angles, ordered_angles
from featherweight.robot.kit import SERVOS
from featherweight.robot.leaders.mapping import RateIntegrator

KEYS = {"a": (0, 1), "d": (0, -1), "w": (1, 1), "s": (1, -1), "r": (2, 1), "f": (2, -1), "q": (3, 1), "e": (3, -1)}
KEYS |= {"t": (4, 1), "g": (4, -1), "o": (5, 1), "l": (5, -1)}
"""Key -> (joint, direction); in mode "twist" the first three are forward, left, up."""
TWIST_KEYS = {
    "w": (0, 1),
    "s": (0, -1),
    "a": (1, 1),
    "d": (1, -1),
    "r": (2, 1),
    "f": (2, -1),
    "q": (3, 1),
    "e": (3, -1),
}
TWIST_KEYS |= {key: KEYS[key] for key in "tgol"}
STOP_KEYS, RESET_KEY, LEAVE_KEY = ("x", " "), "c", "\x1b"
HELP = (
    "a d shoulder pan   w s shoulder lift   r f elbow   q e forearm   t g wrist   o l gripper (open, close)\n"
    "space or x EMERGENCY STOP   c clear it   Esc leave"
)


class KeyboardLeaderConfig(Config):
    """What the keys move, and how fast."""

    id: str = "keyboard"
    """Name of this leader."""
    mode: Literal["joint", "twist"] = "joint"
    """"joint": keys turn joints; "twist": keys move the wrist forward, left and up."""
    speed_deg_s: float = Field(default=45.0, gt=0, le=90)
    """Of joints, while a key is held."""
    speed_mm_s: float = Field(default=60.0, gt=0, le=300)
    """Of the wrist, in mode "twist"."""
    repeat_s: float = Field(default=0.08, gt=0, le=1)
    """A terminal tells of presses, not of releases: after this time without a repetition a key counts as released."""


class KeyboardLeader(Teleoperator):
    """Keys of the terminal; starts where the follower is.

    Args:
        config: settings.
        source: an object whose `read(1)` gives characters; None takes the terminal.
    """

    name = "keyboard"

    def __init__(self, config: KeyboardLeaderConfig | None = None, source: Any = None) -> None:
        self.config = config or KeyboardLeaderConfig()
        self.id = self.config.id
        self._source = source
        self._terminal: _Terminal | None = None
        self._integrator = RateIntegrator(self.config.mode)
        self._keys = TWIST_KEYS if self.config.mode == "twist" else KEYS
        self._pressed_s: dict[str, float] = {}
        self._events: list[str] = []
        self.is_left = False
        """Whether the operator pressed Esc."""

    @property
    def is_connected(self) -> bool:
        """Whether keys are read."""
        return self._terminal is not None

    @property
    def feedback_features(self) -> dict[str, Any]:
        """The follower's angles, at which the keys start."""
        return self.action_features

    def connect(self, calibrate: bool = True) -> None:
        """Begin to read keys.

        Raises:
            DeviceError: if standard input is no terminal.
        """
        if self._terminal is None:
            self._terminal = _Terminal(self._source, self.press)

    def disconnect(self) -> None:
        """Give the terminal back as it was."""
        terminal, self._terminal = self._terminal, None
        if terminal is not None:
            terminal.close()

    def press(self, key: str) -> None:
        """Take one key; the terminal's thread calls it, and anybody may."""
        key = key.lower()
        if key in STOP_KEYS:
            self._events.append("stop")
        elif key == RESET_KEY:
            self._events.append("reset")
        elif key == LEAVE_KEY:
            self.is_left = True
        elif key in self._keys:
            self._pressed_s[key] = time.monotonic()

    def poll_events(self) -> tuple[str, ...]:
        """Return stops and resets since the last call."""
        events, self._events = self._events, []
        return tuple(events)

    def send_feedback(self, feedback: Mapping[str, float]) -> None:
        """Start where the follower is, once."""
        if self._integrator.angles_deg is None:
            self._integrator.start_at(ordered_angles("KeyboardLeader.send_feedback", feedback))

    def get_action(self) -> Action | None:
        """Return the angles of now; None before the follower's angles are known."""
        self._require_connection("get_action")
        now_s = time.monotonic()
        rates = [0.0] * SERVOS
        is_twist = self.config.mode == "twist"
        for key, pressed_s in list(self._pressed_s.items()):
            if now_s - pressed_s <= self.config.repeat_s:
                joint, direction = self._keys[key]
                speed = self.config.speed_mm_s if is_twist and joint < 3 else self.config.speed_deg_s
                rates[joint] += direction * speed
        if any(rates):
            self._integrator.renew(rates, now_s)
        angles_deg = self._integrator.advance(now_s)
        return None if angles_deg is None else keyed_angles(angles_deg)


class _Terminal:
    """Reads single keys in a thread."""

    def __init__(self, source: Any, on_key: Any) -> None:
        self._restore: Any = None
        self._stop = threading.Event()
        read = source.read if source is not None else self._open_terminal()
        self._thread = threading.Thread(target=self._run, args=(read, on_key), name="keyboard", daemon=True)
        self._thread.start()

    def _open_terminal(self) -> Any:
        if sys.platform == "win32":
            import msvcrt

            return lambda count: msvcrt.getwch() if msvcrt.kbhit() else time.sleep(0.01) or None
        if not sys.stdin.isatty():
            raise DeviceError(
                "KeyboardLeader: stdin is no terminal; expected one whose keys can be read. Run the command in "
                "a terminal."
            )
        import select
        import termios
        import tty

        descriptor = sys.stdin.fileno()
        saved = termios.tcgetattr(descriptor)
        tty.setcbreak(descriptor)
        self._restore = lambda: termios.tcsetattr(descriptor, termios.TCSADRAIN, saved)

        def read(count: int) -> str | None:
            return sys.stdin.read(count) if select.select([sys.stdin], [], [], 0.05)[0] else None

        return read

    def _run(self, read: Any, on_key: Any) -> None:
        while not self._stop.is_set():
            key = read(1)
            if key == "":
                return
            if key is not None:
                on_key(key)

    def close(self) -> None:
        self._stop.set()
        self._thread.join(timeout=0.2)
        if self._restore is not None:
            self._restore()
