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
from featherweight.bev.data.frames import Boxes, Frame, Source
from featherweight.bev.data.layers import GroundMap, Raster
from featherweight.bev.data.splits import sequences_of
from featherweight.bev.geometry import inverse_pose, pose, transform
from featherweight.errors import CheckpointError, ConfigError

IMAGE_SIZE = (1920, 1200)
LARGEST_GAP_NS = 51_000_000
"""Between a sweep and its picture: half of the time between two sweeps."""
_PLY_TYPES = {
    "float": "<f4",
    "double": "<f8",
    "uchar": "u1",
    "int": "<i4",
    "uint": "<u4",
    "ushort": "<u2",
    "short": "<i2",
}


class Argoverse1(Source):
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
        self._sweeps: list[tuple[Path, int]] = []
        frames: list[Frame] = []
        for log in sorted(path.parent for path in self.root.glob("*/*/vehicle_calibration_info.json")):
            for camera in cameras:
                frames += self._frames_of(log, camera, len(frames))
        self.frames: Sequence[Frame] = frames
        if not frames:
            raise ConfigError(
                f"Argoverse1: '{root}' has no sweep with a picture of {', '.join(cameras)}; expected such as "
                "ring_front_center. Choose other cameras, or unpack the pictures."
            )

    def sequences(self, split: str, part: str) -> frozenset[str]:
        """Return the logs of a part of the published split."""
        return sequences_of(split, part)

    def _frames_of(self, log: Path, camera: str, first: int) -> list[Frame]:
        pictures = {_nanoseconds(path): path for path in (log / camera).glob("*.jpg")}
        times = np.array(sorted(pictures))
        found: list[Frame] = []
        for sweep in sorted(map(_nanoseconds, (log / "lidar").glob("PC_*.ply"))):
            if not len(times):
                break
            nearest = int(times[np.abs(times - sweep).argmin()])
            pose_file = log / "poses" / f"city_SE3_egovehicle_{nearest}.json"
            if abs(nearest - sweep) > LARGEST_GAP_NS or not pose_file.exists():
                continue
            intrinsics, camera_to_ego = _calibration(log, camera)
            self._sweeps.append((log, sweep))
            found.append(
                Frame(
                    index=first + len(found),
                    token=f"{log.name}-{camera}-{nearest}",
                    sequence=log.name,
                    camera=camera,
                    image=pictures[nearest],
                    width=IMAGE_SIZE[0],
                    height=IMAGE_SIZE[1],
                    timestamp=nearest / 1e9,
                    intrinsics=intrinsics,
                    camera_to_ego=camera_to_ego,
                    ego_to_world=_flat(_pose_of(pose_file)),
                )
            )
        return found

    def ground(self, frame: Frame) -> GroundMap:
        """Return the drivable area of the frame's city."""
        log, _ = self._sweeps[frame.index]
        city = _read_json(log / "city_info.json")["city_name"]
        return {"drivable_area": _drivable_area(self.root / "map_files", city)}

    def boxes(self, frame: Frame) -> Boxes:
        """Return the boxes of the frame's sweep."""
        log, sweep = self._sweeps[frame.index]
        path = log / "per_sweep_annotations_amodal" / f"tracked_object_labels_{sweep}.json"
        if not path.exists():
            return Boxes.none()
        to_world = self._ego_at(frame)
        return boxes_in_world(
            [
                (
                    [one["center"][axis] for axis in "xyz"],
                    [one["width"], one["length"], one["height"]],
                    [one["rotation"][axis] for axis in "wxyz"],
                    self.classes.class_of(one["label_class"]),
                )
                for one in _read_json(path)
            ],
            to_world,
        )

    def lidar_points(self, frame: Frame) -> np.ndarray | None:
        """Return the laser points of the frame's sweep in its camera coordinates."""
        log, sweep = self._sweeps[frame.index]
        points = read_ply(log / "lidar" / f"PC_{sweep}.ply")
        return transform(inverse_pose(frame.camera_to_world) @ self._ego_at(frame), points)

    def _ego_at(self, frame: Frame) -> np.ndarray:
        log, sweep = self._sweeps[frame.index]
        path = log / "poses" / f"city_SE3_egovehicle_{sweep}.json"
        return _flat(_pose_of(path)) if path.exists() else frame.ego_to_world


def boxes_in_world(
    found: Sequence[tuple[Sequence[float], Sequence[float], Sequence[float], int]], ego_to_world: np.ndarray
) -> Boxes:
    """Return boxes of (centre, size, quaternion, class) in ego coordinates, in the world."""
    if not found:
        return Boxes.none()
    centers, rotations = [], []
    for center, _, rotation, _ in found:
        matrix = ego_to_world @ pose(rotation, center)
        centers.append(matrix[:3, 3])
        # Boxes stand upright: the heading is all that a footprint needs.
        yaw = np.arctan2(matrix[1, 0], matrix[0, 0])
        rotations.append([np.cos(yaw / 2), 0, 0, np.sin(yaw / 2)])
    return Boxes(
        centers=np.array(centers),
        sizes=np.array([size for _, size, _, _ in found], dtype=np.float64),
        rotations=np.array(rotations),
        classes=np.array([kind for *_, kind in found], np.int8),
        visibility=np.zeros(len(found), np.int8),
    )


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
def _calibration(log: Path, camera: str) -> tuple[np.ndarray, np.ndarray]:
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
            return intrinsics, pose(place["rotation"]["coefficients"], place["translation"])
    raise ConfigError(f"Argoverse1: camera='{camera}' is not in the calibration of '{log}'. Choose another camera.")


def _flat(ego_to_world: np.ndarray) -> np.ndarray:
    """Return a pose at height zero: heights of the city are kept out of the ground plane."""
    result = ego_to_world.copy()
    result[2, 3] = 0.0
    return result


def _pose_of(path: Path) -> np.ndarray:
    content = _read_json(path)
    return pose(content["rotation"], content["translation"])


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"Argoverse1: '{path}' cannot be read ({error}); expected JSON of Argoverse 1.1. Unpack the log again."
        ) from error


def _nanoseconds(path: Path) -> int:
    return int(path.stem.rpartition("_")[2])
