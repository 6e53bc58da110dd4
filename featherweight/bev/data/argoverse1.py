"""Argoverse 1 tracking 1.1 on disk, read without its development kit: one frame for each laser sweep and camera.

Layout: <root>/{train1..train4,val}/<log>/ with vehicle_calibration_info.json, poses/, per_sweep_annotations_amodal/,
lidar/*.ply, <camera>/*.jpg; <root>/map_files/ with the drivable area as a picture of 1 m.
"""

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from featherweight.bev.data.classes import ARGOVERSE1
from featherweight.bev.data.frames import Frame
from featherweight.bev.data.layers import GroundMap, Raster
from featherweight.bev.data.splits import sequences_of
from featherweight.bev.data.sweeps import Calibration, EgoBox, SweepSource
from featherweight.bev.geometry import pose
from featherweight.errors import CheckpointError, ConfigError

IMAGE_SIZE = (1920, 1200)
_PLY_TYPES = {
    "float": "<f4",
    "double": "<f8",
    "uchar": "u1",
    "int": "<i4",
    "uint": "<u4",
    "ushort": "<u2",
    "short": "<i2",
}


class Argoverse1(SweepSource):
    """Frames of Argoverse 1.

    Args:
        root: folder with the parts and `map_files`.
        cameras: such as "ring_front_center".
    Raises:
        ConfigError: if no frame is found.
        CheckpointError: if a file is damaged or missing.
    """

    classes = ARGOVERSE1
    splits = ("argoverse1",)

    def __init__(self, root: str | Path, *, cameras: Sequence[str] = ("ring_front_center",)) -> None:
        self.root = Path(root)
        super().__init__(sorted(path.parent for path in self.root.glob("*/*/vehicle_calibration_info.json")), cameras)

    def sequences(self, split: str, part: str) -> frozenset[str]:
        """Return the logs of a part of the published split."""
        return sequences_of(split, part)

    def pictures(self, log: Path, camera: str) -> dict[int, Path]:
        """Return the pictures of a camera by their time."""
        return {_nanoseconds(path): path for path in (log / camera).glob("*.jpg")}

    def sweep_times(self, log: Path) -> list[int]:
        """Return the times of the laser's sweeps."""
        return [_nanoseconds(path) for path in (log / "lidar").glob("PC_*.ply")]

    def calibration(self, log: Path, camera: str) -> Calibration:
        """Return what is known of a camera."""
        return _calibration(log, camera)

    def ego_pose(self, log: Path, time: int) -> np.ndarray | None:
        """Return the car's pose at a time, at height zero: heights of the city are kept out of the ground plane."""
        path = log / "poses" / f"city_SE3_egovehicle_{time}.json"
        if not path.exists():
            return None
        content = _read_json(path)
        x, y, _ = content["translation"]
        return pose(content["rotation"], (x, y, 0.0))

    def ground(self, frame: Frame) -> GroundMap:
        """Return the drivable area of the frame's city."""
        city = _read_json(self.log_of(frame) / "city_info.json")["city_name"]
        return {"drivable_area": _drivable_area(self.root / "map_files", city)}

    def annotations(self, log: Path, time: int) -> list[EgoBox]:
        """Return the boxes of a sweep."""
        path = log / "per_sweep_annotations_amodal" / f"tracked_object_labels_{time}.json"
        return [
            (
                [one["center"][axis] for axis in "xyz"],
                [one["width"], one["length"], one["height"]],
                [one["rotation"][axis] for axis in "wxyz"],
                self.classes.class_of(one["label_class"]),
            )
            for one in (_read_json(path) if path.exists() else ())
        ]

    def points(self, log: Path, time: int) -> np.ndarray:
        """Return the points of a sweep."""
        return read_ply(log / "lidar" / f"PC_{time}.ply")


def read_ply(path: Path) -> np.ndarray:
    """Return x, y, z of a binary PLY file of points, (n, 3) float64.

    Raises:
        CheckpointError: if it is none, or ends early.
    """
    try:
        content = path.read_bytes()
        head, _, body = content.partition(b"end_header\n")
        lines = head.decode("ascii").splitlines()
        if "format binary_little_endian 1.0" not in lines:
            raise ValueError("no binary little-endian PLY")
        count = next(int(line.split()[2]) for line in lines if line.startswith("element vertex"))
        names = [line.split() for line in lines if line.startswith("property")]
        kind = np.dtype([(name, _PLY_TYPES[form]) for _, form, name in names])
        points = np.frombuffer(body, kind, count)
        return np.stack([points[axis].astype(np.float64) for axis in "xyz"], axis=1)
    except (OSError, ValueError, KeyError, StopIteration) as error:
        raise CheckpointError(
            f"Argoverse1: laser file '{path}' cannot be read ({error}); expected a binary PLY of points. Unpack it "
            "again."
        ) from error


@cache
def _drivable_area(folder: Path, city: str) -> Raster:
    try:
        (area,) = folder.glob(f"{city}_*_driveable_area_mat_*.npy")
        (placed,) = folder.glob(f"{city}_*_npyimage_to_city_se2_*.npy")
        return Raster(np.load(area) > 0, np.load(placed).reshape(3, 3))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"Argoverse1: the map of '{city}' in '{folder}' is missing or damaged ({error}); expected its drivable "
            "area and its place. Unpack the maps of Argoverse 1.1 there."
        ) from error


@cache
def _calibration(log: Path, camera: str) -> Calibration:
    content = _read_json(log / "vehicle_calibration_info.json")
    for one in content["camera_data_"]:
        if one["key"].endswith(camera):
            value = one["value"]
            intrinsics = np.array(
                [
                    [value["focal_length_x_px_"], 0, value["focal_center_x_px_"]],
                    [0, value["focal_length_y_px_"], value["focal_center_y_px_"]],
                    [0, 0, 1.0],
                ]
            )
            place = value["vehicle_SE3_camera_"]
            return intrinsics, pose(place["rotation"]["coefficients"], place["translation"]), IMAGE_SIZE
    raise ConfigError(f"Argoverse1: camera='{camera}' is not in the calibration of '{log}'. Choose another camera.")


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"Argoverse1: '{path}' cannot be read ({error}); expected JSON of Argoverse 1.1. Unpack the log again."
        ) from error


def _nanoseconds(path: Path) -> int:
    return int(path.stem.rpartition("_")[2])
