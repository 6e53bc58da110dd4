"""The calibration of one kit: offsets of its servos, ranges of its potentiometers; a JSON file per id."""

import os
import re
import sys
from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from featherweight.config import Config
from featherweight.errors import ConfigError
from featherweight.robot.camera.view import CameraView
from featherweight.robot.kit import LIMIT_DEG, SERVOS


def cache_folder() -> Path:
    """Return the folder of calibrations: FEATHERWEIGHT_ROBOT_HOME, or one in the user's cache."""
    if own := os.environ.get("FEATHERWEIGHT_ROBOT_HOME"):
        return Path(own)
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    return base / "featherweight" / "robot"


class KitCalibration(Config):
    """What makes one kit's angles right: servo = sign * (joint + zero_offset), potentiometer volts to degrees."""

    id: str
    """Name of the kit or leader."""
    zero_offset_deg: list[float] = Field(default=[0.0] * SERVOS, min_length=SERVOS, max_length=SERVOS)
    """(6,) added to a joint's angle before it goes to the servo; errors of assembly."""
    sign: list[int] = Field(default=[1] * SERVOS, min_length=SERVOS, max_length=SERVOS)
    """(6,) 1 or -1; -1 for a servo that is mounted the other way round."""
    range_deg: list[tuple[float, float]] = Field(
        default=[(-float(LIMIT_DEG), float(LIMIT_DEG))] * SERVOS, min_length=SERVOS, max_length=SERVOS
    )
    """(6, 2) smallest and largest angle of each joint."""
    pot_min_v: list[float] | None = None
    """(6,) voltage that means -90 degrees; None before the potentiometers were calibrated."""
    pot_max_v: list[float] | None = None
    """(6,) voltage that means +90 degrees."""
    pot_invert: list[bool] = Field(default=[False] * SERVOS, min_length=SERVOS, max_length=SERVOS)
    """(6,) whether a potentiometer turns the other way."""
    pot_center_deg: list[float] = Field(default=[0.0] * SERVOS, min_length=SERVOS, max_length=SERVOS)
    """(6,) subtracted from the angle; set when the leader is centred again while it runs."""
    pot_deadband_v: float = Field(default=0.0049, ge=0)
    """Change below which a potentiometer counts as still; one step of its 10 bits."""
    filter_cutoff_hz: float = Field(default=1.5, gt=0)
    """Smallest cut-off of the One-Euro filter."""
    filter_beta: float = Field(default=0.02, ge=0)
    """How much the cut-off rises with the speed (in degrees a second)."""

    cameras: dict[str, CameraView] = {}
    """Cameras beside the kit, by name; `fw robot calibrate-camera --save` finds them."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if set(self.sign) - {1, -1}:
            raise ValueError(f"sign={self.sign} holds other numbers; expected 1 or -1. Correct it.")
        for low, high in self.range_deg:
            if not -LIMIT_DEG <= low < high <= LIMIT_DEG:
                raise ValueError(f"range_deg={[low, high]} is no range; expected -90 <= low < high <= 90. Correct it.")
        if (self.pot_min_v is None) != (self.pot_max_v is None):
            raise ValueError("pot_min_v and pot_max_v do not come together; expected both or none. Calibrate again.")
        for low, high in zip(self.pot_min_v or [], self.pot_max_v or [], strict=True):
            if high - low <= 1.0:
                raise ValueError(
                    f"pot_max_v - pot_min_v={high - low:.3f} is too small; expected more than 1 V. Calibrate again."
                )
        return self

    def to_servo(self, joints_deg: tuple[float, ...]) -> tuple[float, ...]:
        """Turn joint angles into servo angles."""
        return tuple(s * (q + o) for q, o, s in zip(joints_deg, self.zero_offset_deg, self.sign, strict=True))

    def to_joint(self, servos_deg: tuple[float, ...]) -> tuple[float, ...]:
        """Turn servo angles into joint angles."""
        return tuple(s * q - o for q, o, s in zip(servos_deg, self.zero_offset_deg, self.sign, strict=True))

    def save(self) -> Path:
        """Write the file of this id; the old one is replaced as a whole."""
        path = calibration_path(self.id)
        self.to_file(path)
        return path


def calibration_path(id: str) -> Path:
    """Return the file of an id.

    Raises:
        ConfigError: if the id would lead out of the folder.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", id):
        raise ConfigError(f"robot: id={id!r} is no name of a file; expected letters, digits, '.', '_', '-'. Rename it.")
    return cache_folder() / f"{id}.json"


def load_calibration(id: str) -> KitCalibration | None:
    """Return the saved calibration of an id, or None if there is none.

    Raises:
        ConfigError: if the file is damaged or belongs to another id.
    """
    path = calibration_path(id)
    if not path.exists():
        return None
    calibration = KitCalibration.from_file(path)
    if calibration.id != id:
        raise ConfigError(f"{path}: id={calibration.id} belongs to another device; expected {id}. Calibrate again.")
    return calibration
