"""Argoverse 2 sensor on disk, read with pyarrow alone: one frame for each laser sweep and camera.

Layout: <root>/<part>/<log>/ with annotations.feather, city_SE3_egovehicle.feather, calibration/, map/, sensors/. The
ground of a city is not flat and far above zero: the height of the car is taken from everything.
"""

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from featherweight.bev.data.classes import ARGOVERSE2
from featherweight.bev.data.frames import Frame
from featherweight.bev.data.layers import GroundMap, Polygons
from featherweight.bev.data.sweeps import Calibration, EgoBox, SweepSource
from featherweight.bev.geometry import pose
from featherweight.errors import CheckpointError, ConfigError


class Argoverse2(SweepSource):
    """Frames of Argoverse 2.

    Args:
        root: folder with the parts train and val.
        cameras: such as "ring_front_center".
    Raises:
        ConfigError: if no frame is found.
        CheckpointError: if a file is damaged or missing.
    """

    classes = ARGOVERSE2
    splits = ("official",)

    def __init__(self, root: str | Path, *, cameras: Sequence[str] = ("ring_front_center",)) -> None:
        logs = sorted(path.parents[1] for path in Path(root).glob("*/*/calibration/intrinsics.feather"))
        self._parts = {part: {log.name for log in logs if log.parent.name == part} for part in ("train", "val")}
        super().__init__(logs, cameras)

    def sequences(self, split: str, part: str) -> set[str]:
        """Return the logs that lie in the folder of the part."""
        return self._parts[part]

    def pictures(self, log: Path, camera: str) -> dict[int, Path]:
        """Return the pictures of a camera by their time."""
        return {int(path.stem): path for path in (log / "sensors" / "cameras" / camera).glob("*.jpg")}

    def sweep_times(self, log: Path) -> list[int]:
        """Return the times of the laser's sweeps."""
        return [int(path.stem) for path in (log / "sensors" / "lidar").glob("*.feather")]

    def calibration(self, log: Path, camera: str) -> Calibration:
        """Return what is known of a camera."""
        return _calibration(log, camera)

    def ego_pose(self, log: Path, time: int) -> np.ndarray | None:
        """Return the car's pose at a time, at height zero."""
        return _poses(log).get(time)

    def ground(self, frame: Frame) -> GroundMap:
        """Return drivable areas and crossings of the frame's log."""
        return _map(self.log_of(frame))

    def annotations(self, log: Path, time: int) -> list[EgoBox]:
        """Return the boxes of a sweep."""
        table = _annotations(log)
        return [
            (
                [table[name][row] for name in ("tx_m", "ty_m", "tz_m")],
                [table[name][row] for name in ("width_m", "length_m", "height_m")],
                [table[name][row] for name in ("qw", "qx", "qy", "qz")],
                self.classes.class_of(table["category"][row]),
            )
            for row in np.flatnonzero(table["timestamp_ns"] == time)
        ]

    def points(self, log: Path, time: int) -> np.ndarray:
        """Return the points of a sweep."""
        table = _read_feather(log / "sensors" / "lidar" / f"{time}.feather")
        return np.stack([table[axis].astype(np.float64) for axis in "xyz"], axis=1)


@cache
def _annotations(log: Path) -> dict[str, np.ndarray]:
    return _read_feather(log / "annotations.feather")


@cache
def _poses(log: Path) -> dict[int, np.ndarray]:
    table = _read_feather(log / "city_SE3_egovehicle.feather")
    result = {}
    for row, time in enumerate(table["timestamp_ns"]):
        rotation = [table[name][row] for name in ("qw", "qx", "qy", "qz")]
        result[int(time)] = pose(rotation, (table["tx_m"][row], table["ty_m"][row], 0.0))
    return result


@cache
def _calibration(log: Path, camera: str) -> Calibration:
    inside, placed = (
        _read_feather(log / "calibration" / name) for name in ("intrinsics.feather", "egovehicle_SE3_sensor.feather")
    )
    rows = [np.flatnonzero(table["sensor_name"] == camera) for table in (inside, placed)]
    if not len(rows[0]) or not len(rows[1]):
        raise ConfigError(f"Argoverse2: camera='{camera}' is not in the calibration of '{log}'. Choose another camera.")
    one, other = int(rows[0][0]), int(rows[1][0])
    fx, fy, cx, cy = (float(inside[name][one]) for name in ("fx_px", "fy_px", "cx_px", "cy_px"))
    rotation = [placed[name][other] for name in ("qw", "qx", "qy", "qz")]
    translation = [placed[name][other] for name in ("tx_m", "ty_m", "tz_m")]
    size = int(inside["width_px"][one]), int(inside["height_px"][one])
    return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1.0]]), pose(rotation, translation), size


@cache
def _map(log: Path) -> GroundMap:
    try:
        (path,) = (log / "map").glob("log_map_archive_*.json")
        content = json.loads(path.read_text(encoding="utf-8"))
        areas = [[_ring(area["area_boundary"])] for area in content["drivable_areas"].values()]
        crossings = [
            [_ring([*one["edge1"], *reversed(one["edge2"])])] for one in content["pedestrian_crossings"].values()
        ]
        return {"drivable_area": Polygons(areas), "ped_crossing": Polygons(crossings)}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"Argoverse2: the map of '{log}' is missing or damaged ({type(error).__name__}: {error}); expected one "
            "map/log_map_archive_*.json. Download the log again."
        ) from error


def _ring(points: Sequence[dict[str, float]]) -> np.ndarray:
    return np.array([(point["x"], point["y"]) for point in points], dtype=np.float64)


def _read_feather(path: Path) -> dict[str, Any]:
    from pyarrow import ArrowException, feather

    try:
        table = feather.read_table(path)
    except (OSError, ArrowException) as error:
        raise CheckpointError(
            f"Argoverse2: '{path}' cannot be read ({error}); expected a feather file of Argoverse 2. Download the log "
            "again."
        ) from error
    return {name: table[name].to_numpy() for name in table.column_names}
