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


class RoomView:
    """What an `EpisodeRecorder` needs of an operator's session: mode, goal and reported angles of the robot.

    Args:
        side: a running session.
    """

    def __init__(self, side: OperatorSide) -> None:
        self._side = side

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
        """Return camera -> newest (H, W, 3) picture."""
        return {name: decode_picture(data) for name, data in dict(self._side.pictures).items()}

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
