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

from featherweight.bev.data.argoverse1 import boxes_in_world
from featherweight.bev.data.classes import ARGOVERSE2
from featherweight.bev.data.frames import Boxes, Frame, Source
from featherweight.bev.data.layers import GroundMap, Polygons
from featherweight.bev.geometry import inverse_pose, pose, transform
from featherweight.errors import CheckpointError, ConfigError

LARGEST_GAP_NS = 51_000_000


class Argoverse2(Source):
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
        self.root = Path(root)
        self._sweeps: list[tuple[Path, int]] = []
        self._parts: dict[str, set[str]] = {"train": set(), "val": set()}
        frames: list[Frame] = []
        for log in sorted(path.parents[1] for path in self.root.glob("*/*/calibration/intrinsics.feather")):
            if log.parent.name in self._parts:
                self._parts[log.parent.name].add(log.name)
            for camera in cameras:
                frames += self._frames_of(log, camera, len(frames))
        self.frames: Sequence[Frame] = frames
        if not frames:
            raise ConfigError(
                f"Argoverse2: '{root}' has no sweep with a picture of {', '.join(cameras)}; expected such as "
                "ring_front_center. Choose other cameras, or download the pictures."
            )

    def sequences(self, split: str, part: str) -> set[str]:
        """Return the logs that lie in the folder of the part."""
        return self._parts[part]

    def _frames_of(self, log: Path, camera: str, first: int) -> list[Frame]:
        pictures = {int(path.stem): path for path in (log / "sensors" / "cameras" / camera).glob("*.jpg")}
        if not pictures:
            return []
        found: list[Frame] = []
        times = np.array(sorted(pictures))
        intrinsics, camera_to_ego, size = _calibration(log, camera)
        poses = _poses(log)
        for sweep in sorted(int(path.stem) for path in (log / "sensors" / "lidar").glob("*.feather")):
            nearest = int(times[np.abs(times - sweep).argmin()])
            if abs(nearest - sweep) > LARGEST_GAP_NS or nearest not in poses or sweep not in poses:
                continue
            self._sweeps.append((log, sweep))
            found.append(
                Frame(
                    index=first + len(found),
                    token=f"{log.name}-{camera}-{nearest}",
                    sequence=log.name,
                    camera=camera,
                    image=pictures[nearest],
                    width=size[0],
                    height=size[1],
                    timestamp=nearest / 1e9,
                    intrinsics=intrinsics,
                    camera_to_ego=camera_to_ego,
                    ego_to_world=poses[nearest],
                )
            )
        return found

    def ground(self, frame: Frame) -> GroundMap:
        """Return drivable areas and crossings of the frame's log."""
        return _map(self._sweeps[frame.index][0])

    def boxes(self, frame: Frame) -> Boxes:
        """Return the boxes of the frame's sweep."""
        log, sweep = self._sweeps[frame.index]
        table = _annotations(log)
        chosen = np.flatnonzero(table["timestamp_ns"] == sweep)
        found = [
            (
                [table[name][row] for name in ("tx_m", "ty_m", "tz_m")],
                [table[name][row] for name in ("width_m", "length_m", "height_m")],
                [table[name][row] for name in ("qw", "qx", "qy", "qz")],
                self.classes.class_of(table["category"][row]),
            )
            for row in chosen
        ]
        return boxes_in_world(found, _poses(log)[sweep])

    def lidar_points(self, frame: Frame) -> np.ndarray | None:
        """Return the laser points of the frame's sweep in its camera coordinates."""
        log, sweep = self._sweeps[frame.index]
        table = _read_feather(log / "sensors" / "lidar" / f"{sweep}.feather")
        points = np.stack([table[axis].astype(np.float64) for axis in "xyz"], axis=1)
        return transform(inverse_pose(frame.camera_to_world) @ _poses(log)[sweep], points)


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
def _calibration(log: Path, camera: str) -> tuple[np.ndarray, np.ndarray, tuple[int, int]]:
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
