"""A leader of two sticks and a button that must be held. Linux reads the device itself; elsewhere pygame does."""

import os
import struct
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from featherweight.config import Config
from featherweight.errors import DeviceError, MissingExtraError
from featherweight.robot.contract import Action, Teleoperator, keyed_angles, ordered_angles
from featherweight.robot.kit import SERVOS
from featherweight.robot.leaders.mapping import RateIntegrator

_EVENT = struct.Struct("<IhBB")
"""Time in ms, value, type (1 button, 2 axis; 0x80 marks the first report), number: the joystick API of Linux."""
_BUTTON, _AXIS, _FIRST = 1, 2, 0x80


class GamepadLeaderConfig(Config):
    """Which gamepad, what its sticks move, and how fast."""

    id: str = "gamepad"
    """Name of this leader."""
    device: str = "/dev/input/js0"
    """Of the gamepad (Linux)."""
    mode: Literal["joint", "twist"] = "joint"
    """As for the keyboard."""
    axes: list[int] = Field(default=[0, 1, 4, 3, 7, 6], min_length=SERVOS, max_length=SERVOS)
    """(6,) axis that moves each joint."""
    sign: list[int] = Field(default=[-1, -1, -1, -1, -1, 1], min_length=SERVOS, max_length=SERVOS)
    """(6,) 1 or -1."""
    hold_button: int = Field(default=4, ge=0)
    """The dead man's button: the arm follows only while it is pressed."""
    stop_button: int = Field(default=1, ge=0)
    """Emergency stop."""
    reset_button: int = Field(default=7, ge=0)
    """Ends an emergency stop."""
    deadzone: float = Field(default=0.12, ge=0, lt=1)
    """Deflection below which a stick counts as centred."""
    speed_deg_s: float = Field(default=60.0, gt=0, le=90)
    """Of a joint at full deflection."""
    speed_mm_s: float = Field(default=80.0, gt=0, le=300)
    """Of the wrist at full deflection, in mode "twist"."""


class GamepadLeader(Teleoperator):
    """A gamepad; gives actions only while the dead man's button is held."""

    name = "gamepad"

    def __init__(self, config: GamepadLeaderConfig | None = None) -> None:
        self.config = config or GamepadLeaderConfig()
        self.id = self.config.id
        self._integrator = RateIntegrator(self.config.mode)
        self._axes: dict[int, float] = {}
        self._buttons: dict[int, bool] = {}
        self._events: list[str] = []
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._feedback_deg: tuple[float, ...] | None = None
        self._was_held = False

    @property
    def is_connected(self) -> bool:
        """Whether the gamepad is read."""
        return self._thread is not None and self._thread.is_alive()

    @property
    def feedback_features(self) -> dict[str, Any]:
        """The follower's angles, at which the sticks start whenever the button is pressed."""
        return self.action_features

    def connect(self, calibrate: bool = True) -> None:
        """Open the gamepad.

        Raises:
            DeviceError: if it is not there or may not be opened.
            MissingExtraError: if pygame is needed (not on Linux) and not installed.
        """
        if self.is_connected:
            return
        self._stop.clear()
        read = self._open_linux() if sys.platform.startswith("linux") else self._open_pygame()
        self._thread = threading.Thread(target=self._run, args=(read,), name="gamepad", daemon=True)
        self._thread.start()

    def disconnect(self) -> None:
        """Close the gamepad."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=0.5)
            self._thread = None

    def take(self, event: bytes) -> None:
        """Take one event of eight bytes."""
        _, value, kind, number = _EVENT.unpack(event)
        if kind & ~_FIRST == _AXIS:
            self._axes[number] = value / 32767
        elif kind & ~_FIRST == _BUTTON:
            is_press = bool(value) and not self._buttons.get(number) and not kind & _FIRST
            self._buttons[number] = bool(value)
            if is_press and number == self.config.stop_button:
                self._events.append("stop")
            if is_press and number == self.config.reset_button:
                self._events.append("reset")

    def poll_events(self) -> tuple[str, ...]:
        """Return stops and resets since the last call."""
        events, self._events = self._events, []
        return tuple(events)

    def send_feedback(self, feedback: Mapping[str, float]) -> None:
        """Remember where the follower is; the sticks start there."""
        self._feedback_deg = ordered_angles("GamepadLeader.send_feedback", feedback)

    def get_action(self) -> Action | None:
        """Return the angles of now; None unless the button is held, or when the gamepad is gone."""
        if self._thread is None:
            self._require_connection("get_action")
        if not self.is_connected:
            raise DeviceError(
                f"GamepadLeader: device={self.config.device} is gone; expected a gamepad. Plug it in and start again."
            )
        return self.action_at(time.monotonic())

    def action_at(self, now_s: float) -> Action | None:
        """Return the action for a time of the monotonic clock; see `get_action`."""
        is_held = self._buttons.get(self.config.hold_button, False)
        if is_held and not self._was_held and self._feedback_deg is not None:
            self._integrator.start_at(self._feedback_deg)
        self._was_held = is_held
        if not is_held:
            self._integrator.renew((0.0,) * SERVOS, now_s)
            self._integrator.advance(now_s)
            return None
        self._integrator.renew([self._rate(i) for i in range(SERVOS)], now_s)
        angles_deg = self._integrator.advance(now_s)
        return None if angles_deg is None else keyed_angles(angles_deg)

    def _rate(self, joint: int) -> float:
        config = self.config
        value = self._axes.get(config.axes[joint], 0.0)
        if abs(value) < config.deadzone:
            return 0.0
        scaled = (abs(value) - config.deadzone) / (1 - config.deadzone) * (1 if value > 0 else -1)
        speed = config.speed_mm_s if config.mode == "twist" and joint < 3 else config.speed_deg_s
        return scaled * speed * config.sign[joint]

    def _open_linux(self) -> Any:
        path = self.config.device
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        except OSError as error:
            advice = "Add yourself to the group 'input'" if isinstance(error, PermissionError) else "Plug it in"
            raise DeviceError(
                f"GamepadLeader: device={path} cannot be opened ({error.strerror}); expected a gamepad. {advice}."
            ) from error

        def read() -> bytes | None:
            import select

            if self._stop.is_set():
                os.close(descriptor)
                return b""
            return os.read(descriptor, _EVENT.size) if select.select([descriptor], [], [], 0.05)[0] else None

        return read

    def _open_pygame(self) -> Any:
        try:
            import pygame
        except ImportError as error:
            raise MissingExtraError(
                "GamepadLeader: package=pygame is not installed; expected it on this system. Run pip install pygame."
            ) from error
        pygame.init()
        if pygame.joystick.get_count() == 0:
            raise DeviceError("GamepadLeader: device=0 is not there; expected a gamepad. Plug it in.")
        stick = pygame.joystick.Joystick(0)

        def read() -> bytes | None:
            if self._stop.is_set():
                return b""
            pygame.event.pump()
            for number in range(stick.get_numaxes()):
                self._axes[number] = stick.get_axis(number)
            for number in range(stick.get_numbuttons()):
                self.take(_EVENT.pack(0, int(stick.get_button(number)), _BUTTON, number))
            time.sleep(0.01)
            return None

        return read

    def _run(self, read: Any) -> None:
        try:
            while event := read() or (None if self._stop.is_set() else b"\0"):
                if len(event) == _EVENT.size:
                    self.take(event)
        except OSError:
            # The cable was pulled: the thread ends, and get_action says so.
            self._buttons.clear()
