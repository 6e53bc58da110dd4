"""What a page has to know of a camera to draw into its picture: where it stands, and how wide it looks."""

from collections.abc import Sequence
from typing import Self

from pydantic import Field

from featherweight.config import Config


class CameraView(Config):
    """A camera that stands still, without distortion; see `Pinhole` for its axes."""

    fovy_deg: float = Field(gt=0, lt=180)
    """Angle that the height of its picture covers."""
    pose: list[float] = Field(min_length=12, max_length=12)
    """The three rows of (rotation | place in metres) from the world to the camera, one after the other."""

    @classmethod
    def of(cls, pose: Sequence[Sequence[float]], fovy_deg: float) -> Self:
        """Return the view of a (4, 4) or (3, 4) pose, to a hundredth of a millimetre."""
        return cls(fovy_deg=round(fovy_deg, 4), pose=[round(float(value), 5) for row in pose[:3] for value in row])
