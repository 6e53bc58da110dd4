"""What every robot and every leader offers, with the names of LeRobot's Robot and Teleoperator.

Features are known before connecting; angles are float degrees under ``<joint>.pos``; `send_action` returns what was
really sent after the limits.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from featherweight.errors import ConfigError, DeviceError, did_you_mean
from featherweight.robot.kit import JOINT_KEYS

Action = dict[str, float]
"""Joint key -> degrees."""
Observation = dict[str, Any]
"""Joint key -> degrees, camera name -> (H, W, 3) uint8 picture."""
Features = dict[str, Any]
"""Key -> float, or the shape of a picture."""


class _Device(ABC):
    """Life cycle of robots and leaders."""

    name: str
    """Kind of the device."""
    id: str
    """Which one of its kind; names the calibration file."""

    @property
    @abstractmethod
    def is_connected(self) -> bool:
        """Whether `connect` has succeeded and `disconnect` was not called."""

    @abstractmethod
    def connect(self, calibrate: bool = True) -> None:
        """Open the device.

        Args:
            calibrate: load the calibration that was saved for this id.
        """

    @property
    def is_calibrated(self) -> bool:
        """Whether the device has what it needs to give right angles."""
        return True

    def calibrate(self) -> None:  # noqa: B027 (most devices need no calibration)
        """Calibrate, if the device can."""

    def configure(self) -> None:  # noqa: B027 (most devices have no settings)
        """Send settings to the device, if it has any."""

    @abstractmethod
    def disconnect(self) -> None:
        """Close the device; a robot is frozen first. Twice is fine."""

    def __enter__(self) -> Self:
        if not self.is_connected:
            self.connect()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.disconnect()

    def _require_connection(self, call: str) -> None:
        if not self.is_connected:
            raise DeviceError(
                f"{type(self).__name__}.{call}: id={self.id!r} is not connected; expected connect() first. Call "
                f"it, or use "
                "the object in a with statement."
            )


class Robot(_Device):
    """A robot that follows."""

    @property
    @abstractmethod
    def observation_features(self) -> Features:
        """What `get_observation` returns: key -> float or shape of a picture."""

    @property
    def action_features(self) -> Features:
        """What `send_action` takes: key -> float."""
        return dict.fromkeys(JOINT_KEYS, float)

    @abstractmethod
    def get_observation(self) -> Observation:
        """Return the newest angles in degrees, and pictures."""

    @abstractmethod
    def send_action(self, action: Mapping[str, float]) -> Action:
        """Set the goal; return the one in force after the limits."""

    @abstractmethod
    def hold(self) -> None:
        """Freeze the robot where it is; safe from every thread, never blocks, never fails."""


class Teleoperator(_Device):
    """A device that leads."""

    @property
    def action_features(self) -> Features:
        """What `get_action` returns: key -> float."""
        return dict.fromkeys(JOINT_KEYS, float)

    @property
    def feedback_features(self) -> Features:
        """What `send_feedback` takes; nothing by default."""
        return {}

    @abstractmethod
    def get_action(self) -> Action | None:
        """Return where the follower shall go, in degrees; None if the operator commands nothing now."""

    def poll_events(self) -> tuple[str, ...]:
        """Return what the operator asked for since the last call: "stop", "reset", "pause"; nothing by default."""
        return ()

    def send_feedback(self, feedback: Mapping[str, float]) -> None:
        """Tell the leader where the follower is, if it can use that (rate control starts there)."""


def ordered_angles(where: str, action: Mapping[str, float]) -> tuple[float, ...]:
    """Return (6,) degrees of an action in the order of the wire.

    Raises:
        ConfigError: if a key is missing or unknown, or a value is no finite number.
    """
    for key in action:
        if key not in JOINT_KEYS:
            raise ConfigError(
                f"{where}: key={key!r} is unknown; expected a joint. {did_you_mean(str(key), JOINT_KEYS)}"
            )
    missing = [key for key in JOINT_KEYS if key not in action]
    if missing:
        raise ConfigError(f"{where}: {missing[0]} is missing; expected all six joints. Add {', '.join(missing)}.")
    for key, value in action.items():
        try:
            is_finite = math.isfinite(value)
        except TypeError:
            is_finite = False
        if not is_finite:
            raise ConfigError(f"{where}: {key}={value!r} is no angle; expected a finite number of degrees. Correct it.")
    return tuple(float(action[key]) for key in JOINT_KEYS)


def keyed_angles(angles_deg: Any) -> Action:
    """Return an action from (6,) degrees in the order of the wire."""
    return {key: float(angle) for key, angle in zip(JOINT_KEYS, angles_deg, strict=True)}
