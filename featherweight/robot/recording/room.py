"""Recording from the operator's side of a room: what was sent, what the robot reported, the pictures that came."""

import io
import time
from collections.abc import Mapping

import numpy as np

from featherweight.errors import ConfigError, DeviceError
from featherweight.robot.network.operator_side import OperatorSide
from featherweight.robot.recording.video import Picture
from featherweight.robot.safety.mode import Mode

FIRST_PICTURE_S = 10.0
STALE_S = 1.0
"""Age from which a picture that came over the network shows the past."""


class RoomView:
    """What an `EpisodeRecorder` needs of an operator's session: mode, goal and reported angles of the robot.

    Args:
        side: a running session.
    """

    def __init__(self, side: OperatorSide) -> None:
        self._side = side
        self._decoded: dict[str, tuple[bytes, Picture]] = {}

    @property
    def mode(self) -> Mode:
        """Of the robot; IDLE while somebody else drives it."""
        state = self._side.state
        return state.mode if state is not None and self._side.has_robot and not state.is_lost else Mode.IDLE

    @property
    def goal_deg(self) -> tuple[float, ...] | None:
        """(6,) degrees of the newest command; None while none is sent."""
        return self._side.sent_deg

    def reported_deg(self) -> tuple[float, ...]:
        """(6,) degrees that the robot reported last."""
        assert self._side.state is not None
        return self._side.state.angles_deg

    def pictures(self) -> dict[str, Picture]:
        """Return camera -> newest (H, W, 3) picture, of those that keep coming."""
        oldest_ns = time.monotonic_ns() - STALE_S * 1e9
        came = {name for name, came_ns in dict(self._side.pictures_ns).items() if came_ns > oldest_ns}
        for name, data in dict(self._side.pictures).items():
            if name not in self._decoded or self._decoded[name][0] is not data:
                self._decoded[name] = data, decode_picture(data)
        return {name: picture for name, (_, picture) in self._decoded.items() if name in came}

    def extra(self) -> Mapping[str, float]:
        """Return the round trip of the network in milliseconds, in the middle of the last frames."""
        return {"observation.rtt_ms": self._side.delays.round_trip_ms.p50}


def decode_picture(data: bytes) -> Picture:
    """Return the (H, W, 3) picture of a JPEG.

    Raises:
        DeviceError: if it is none.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    except (UnidentifiedImageError, OSError) as error:
        raise DeviceError(
            f"record: a picture cannot be read ({error}); expected JPEG. Check the robot's side."
        ) from error


def wait_for_cameras(
    side: OperatorSide, names: list[str], timeout_s: float = FIRST_PICTURE_S
) -> dict[str, tuple[int, int]]:
    """Wait for the first picture of each camera; return camera -> (height, width).

    Raises:
        ConfigError: if one does not come, with the names of those that do.
    """
    end_s = time.monotonic() + timeout_s
    while time.monotonic() < end_s and not set(names) <= set(side.pictures):
        time.sleep(0.05)
    missing = [name for name in names if name not in side.pictures]
    if missing:
        raise ConfigError(
            f"record: camera={missing[0]} of the robot sends no pictures; expected one of {sorted(side.pictures)}. "
            "Serve the robot with cameras, or leave --camera out."
        )
    found = {}
    for name in names:
        height, width = decode_picture(side.pictures[name]).shape[:2]
        found[name] = (height, width)
    return found
