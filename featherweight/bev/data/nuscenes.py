"""nuScenes on disk, read without its development kit: an index of key frames that is built once and opens at once.

Tables are streamed record by record, so that the 2.6 million sample_data of the full set need no gigabytes. The index
lies in the cache of the user, under a name that follows from sizes and times of the tables. Schema: the documentation
of nuScenes 1.0 and of its map expansion 1.3. The data's licence (CC BY-NC-SA 4.0) forbids commercial use of what is
trained on them.
"""

import hashlib
import json
from array import array
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from featherweight.bev.data.classes import NUSCENES
from featherweight.bev.data.frames import Boxes, Frame, Source
from featherweight.bev.data.layers import GroundMap
from featherweight.bev.data.nuscenes_map import read_map
from featherweight.bev.data.records import iterate_records
from featherweight.bev.data.splits import sequences_of
from featherweight.bev.geometry import inverse_pose, pose, transform
from featherweight.config.files import cache_folder, new_file
from featherweight.errors import CheckpointError, ConfigError, did_you_mean

CAMERAS = ("CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_BACK_RIGHT", "CAM_BACK", "CAM_BACK_LEFT", "CAM_FRONT_LEFT")
LIDAR = "LIDAR_TOP"
TABLES = (
    "scene",
    "log",
    "sample",
    "sensor",
    "calibrated_sensor",
    "sample_data",
    "ego_pose",
    "category",
    "instance",
    "sample_annotation",
)
_FORMAT = 1
"""Raised when the arrays of the index change, so that older files are built anew."""


class NuScenesIndex(Source):
    """Key frames of a nuScenes folder, or of one in its format, with boxes, maps and laser points.

    Args:
        root: folder with `samples/`, `maps/` and the tables.
        version: name of the folder of tables, such as "v1.0-trainval"; None takes the only one.
        cameras: channels to keep.
        cache: folder of the index; None takes the user's cache.
    Raises:
        ConfigError: if a camera or version does not exist.
        CheckpointError: if a table is missing or damaged, or refers to a record that is not there.
    """

    classes = NUSCENES
    splits = ("pon", "official")

    def __init__(
        self,
        root: str | Path,
        version: str | None = None,
        *,
        cameras: Sequence[str] = ("CAM_FRONT",),
        cache: Path | None = None,
    ) -> None:
        self.root = Path(root)
        self.version = _find_version(self.root, version)
        for camera in cameras:
            if camera not in CAMERAS:
                raise ConfigError(
                    f"NuScenesIndex: cameras={camera} is no camera; expected some of {', '.join(CAMERAS)}. "
                    f"{did_you_mean(camera, CAMERAS)}"
                )
        folder = self.root / self.version
        self._arrays = _open_or_build(folder, tuple(cameras), cache or cache_folder() / "bev")
        self._maps: dict[str, GroundMap] = {}
        self.frames: Sequence[Frame] = _Frames(self.root, self._arrays)

    @property
    def descriptions(self) -> dict[str, str]:
        """Sentence about each drive, by name: weather and time of day stand there."""
        return dict(zip(self._words("scene_name"), self._words("scene_description"), strict=True))

    def location(self, frame: Frame) -> str:
        """Return the name of the place whose map holds the frame."""
        return self._words("scene_location")[self._arrays["scene"][frame.index]]

    def sequences(self, split: str, part: str) -> frozenset[str]:
        """Return the drives of a part of a published split; "official" has an own one for the small download."""
        return sequences_of(split, part, mini=self.version.endswith("mini"))

    def ground(self, frame: Frame) -> GroundMap:
        """Return the map of the frame's place; read once a place."""
        location = self.location(frame)
        if location not in self._maps:
            self._maps[location] = read_map(self.root / "maps" / "expansion" / f"{location}.json")
        return self._maps[location]

    def boxes(self, frame: Frame) -> Boxes:
        """Return the annotated boxes of the frame's sample."""
        sample = self._arrays["sample"][frame.index]
        first, last = self._arrays["box_offsets"][sample : sample + 2]
        part = slice(first, last)
        return Boxes(
            centers=self._arrays["box_centers"][part],
            sizes=self._arrays["box_sizes"][part],
            rotations=self._arrays["box_rotations"][part],
            classes=self._arrays["box_classes"][part],
            visibility=self._arrays["box_visibility"][part],
        )

    def lidar_points(self, frame: Frame) -> np.ndarray | None:
        """Return the laser points of the frame's sample in its camera coordinates, (n, 3) float64."""
        sample = self._arrays["sample"][frame.index]
        filename = self._arrays["lidar_file"][sample].decode()
        if not filename:
            return None
        path = self.root / filename
        try:
            points = np.fromfile(path, dtype=np.float32).reshape(-1, 5)[:, :3].astype(np.float64)
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"NuScenesIndex: laser file '{path}' cannot be read ({error}); expected rows of five float32. Download "
                "it again, or make labels without the laser mask."
            ) from error
        sensor_to_ego = self._arrays["lidar_to_ego"][sample]
        ego_to_world = self._arrays["lidar_ego_to_world"][sample]
        world = transform(ego_to_world @ sensor_to_ego, points)
        return transform(inverse_pose(frame.camera_to_world), world)

    def _words(self, name: str) -> list[str]:
        return [one.decode() for one in self._arrays[name]]


class _Frames(Sequence[Frame]):
    """Frames made from the arrays when they are asked for."""

    def __init__(self, root: Path, arrays: dict[str, np.ndarray]) -> None:
        self._root, self._arrays = root, arrays

    def __len__(self) -> int:
        return len(self._arrays["timestamp"])

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        arrays = self._arrays
        width, height = arrays["size"][index]
        return Frame(
            index=index,
            token=arrays["token"][index].decode(),
            sequence=arrays["scene_name"][arrays["scene"][index]].decode(),
            camera=arrays["channel"][index].decode(),
            image=self._root / arrays["image"][index].decode(),
            width=int(width),
            height=int(height),
            timestamp=arrays["timestamp"][index] / 1e6,
            intrinsics=arrays["intrinsics"][index],
            camera_to_ego=arrays["camera_to_ego"][index],
            ego_to_world=arrays["ego_to_world"][index],
        )


def _find_version(root: Path, version: str | None) -> str:
    if not root.is_dir():
        raise ConfigError(
            f"NuScenesIndex: root='{root}' is no folder; expected one in nuScenes' format. Make one with "
            "`fw bev synth DIR`, or give the folder of the download."
        )
    found = sorted(path.parent.name for path in root.glob("*/sample_data.json"))
    if version is None and len(found) == 1:
        return found[0]
    if version is None or version not in found:
        raise ConfigError(
            f"NuScenesIndex: version='{version}' in '{root}'; expected one of the folders of tables there: "
            f"{', '.join(found) or 'none was found'}. Set `version`, or unpack the metadata of the download there."
        )
    return version


def _open_or_build(folder: Path, cameras: tuple[str, ...], cache: Path) -> dict[str, np.ndarray]:
    missing = [name for name in TABLES if not (folder / f"{name}.json").is_file()]
    if missing:
        raise CheckpointError(
            f"NuScenesIndex: '{folder}' lacks {', '.join(f'{name}.json' for name in missing)}; expected all tables. "
            "Unpack the metadata of the download again."
        )
    stamps = [(folder / f"{name}.json").stat() for name in TABLES]
    identity = json.dumps([_FORMAT, str(folder.resolve()), cameras, [(one.st_size, one.st_mtime_ns) for one in stamps]])
    path = cache / f"nuscenes-{hashlib.sha256(identity.encode()).hexdigest()[:24]}.npz"
    if path.exists():
        try:
            with np.load(path) as stored:
                return {name: stored[name] for name in stored.files}
        except (OSError, ValueError, KeyError):
            path.unlink(missing_ok=True)  # damaged by whoever was stopped in it; it is built again
    arrays = _build(folder, cameras)
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with new_file(path) as place, place.open("wb") as stream:
            np.savez(stream, allow_pickle=False, **arrays)
    except OSError:
        pass  # a cache that cannot be written costs time at the next opening, nothing else
    return arrays


def _build(folder: Path, cameras: tuple[str, ...]) -> dict[str, np.ndarray]:
    def table(name: str) -> Iterable[dict[str, Any]]:
        return iterate_records(folder / f"{name}.json")

    try:
        locations = {record["token"]: record["location"] for record in table("log")}
        scenes = list(table("scene"))
        scene_numbers = {record["token"]: number for number, record in enumerate(scenes)}
        samples = {record["token"]: (number, record) for number, record in enumerate(table("sample"))}
        sample_scene = np.array([scene_numbers[record["scene_token"]] for _, record in samples.values()], np.int64)
        sample_numbers = {token: number for token, (number, _) in samples.items()}
        del samples
        arrays = {
            "scene_name": _bytes(record["name"] for record in scenes),
            "scene_description": _bytes(record.get("description", "") for record in scenes),
            "scene_location": _bytes(locations[record["log_token"]] for record in scenes),
        }
        arrays |= _build_frames(table, cameras, sample_numbers, sample_scene)
        arrays |= _build_boxes(table, sample_numbers)
    except KeyError as error:
        raise CheckpointError(
            f"NuScenesIndex: the tables of '{folder}' refer to {error} which no record has; expected complete "
            "tables of one version. Unpack the metadata of the download again."
        ) from error
    if not len(arrays["timestamp"]):
        raise ConfigError(
            f"NuScenesIndex: '{folder}' has no key frame of {', '.join(cameras)}; expected at least one. Choose other "
            "cameras."
        )
    return arrays


def _build_frames(
    table: Any, cameras: tuple[str, ...], sample_numbers: dict[str, int], sample_scene: np.ndarray
) -> dict[str, np.ndarray]:
    channels = {record["token"]: record["channel"] for record in table("sensor")}
    wanted = {*cameras, LIDAR}
    calibrations = {}
    for record in table("calibrated_sensor"):
        channel = channels[record["sensor_token"]]
        if channel in wanted:
            matrix = pose(record["rotation"], record["translation"])
            calibrations[record["token"]] = (channel, record["camera_intrinsic"], matrix)
    kept = [
        (
            record["token"],
            sample_numbers[record["sample_token"]],
            record["calibrated_sensor_token"],
            record["ego_pose_token"],
            record["filename"],
            record["timestamp"],
            record["width"],
            record["height"],
        )
        for record in table("sample_data")
        if record["is_key_frame"] and record["calibrated_sensor_token"] in calibrations
    ]
    needed = {record[3] for record in kept}
    poses = {
        record["token"]: pose(record["rotation"], record["translation"])
        for record in table("ego_pose")
        if record["token"] in needed
    }
    of_camera = sorted(
        (one for one in kept if calibrations[one[2]][0] != LIDAR),
        key=lambda one: (sample_scene[one[1]], cameras.index(calibrations[one[2]][0]), one[5]),
    )
    of_lidar = {one[1]: one for one in kept if calibrations[one[2]][0] == LIDAR}
    samples = range(len(sample_numbers))
    return {
        "token": _bytes(one[0] for one in of_camera),
        "sample": np.array([one[1] for one in of_camera], np.int64),
        "scene": sample_scene[[one[1] for one in of_camera]] if of_camera else np.zeros(0, np.int64),
        "channel": _bytes(calibrations[one[2]][0] for one in of_camera),
        "image": _bytes(one[4] for one in of_camera),
        "timestamp": np.array([one[5] for one in of_camera], np.int64),
        "size": np.array([one[6:8] for one in of_camera], np.int64).reshape(-1, 2),
        "intrinsics": np.array([calibrations[one[2]][1] for one in of_camera], np.float64).reshape(-1, 3, 3),
        "camera_to_ego": np.array([calibrations[one[2]][2] for one in of_camera]).reshape(-1, 4, 4),
        "ego_to_world": np.array([poses[one[3]] for one in of_camera]).reshape(-1, 4, 4),
        "lidar_file": _bytes(of_lidar[number][4] if number in of_lidar else "" for number in samples),
        "lidar_to_ego": np.array([calibrations[of_lidar[n][2]][2] if n in of_lidar else np.eye(4) for n in samples]),
        "lidar_ego_to_world": np.array([poses[of_lidar[n][3]] if n in of_lidar else np.eye(4) for n in samples]),
    }


def _build_boxes(table: Any, sample_numbers: dict[str, int]) -> dict[str, np.ndarray]:
    categories = {record["token"]: record["name"] for record in table("category")}
    classes = {record["token"]: NUSCENES.class_of(categories[record["category_token"]]) for record in table("instance")}
    # Arrays of numbers: a list of Python numbers would take four times their memory.
    samples, kinds, visibility, numbers = array("q"), array("b"), array("b"), array("d")
    for record in table("sample_annotation"):
        samples.append(sample_numbers[record["sample_token"]])
        kinds.append(classes[record["instance_token"]])
        visibility.append(int(record.get("visibility_token") or 0))
        numbers.extend(record["translation"])
        numbers.extend(record["size"])
        numbers.extend(record["rotation"])
    order = np.argsort(np.frombuffer(samples, np.int64) if samples else np.zeros(0, np.int64), kind="stable")
    values = (np.frombuffer(numbers) if numbers else np.zeros(0)).reshape(-1, 10)[order]
    of_sample = np.array(samples, np.int64)
    return {
        "box_offsets": np.concatenate([[0], np.cumsum(np.bincount(of_sample, minlength=len(sample_numbers)))]),
        "box_classes": np.array(kinds, np.int8)[order],
        "box_visibility": np.array(visibility, np.int8)[order],
        "box_centers": values[:, :3].copy(),
        "box_sizes": values[:, 3:6].copy(),
        "box_rotations": values[:, 6:].copy(),
    }


def _bytes(words: Iterable[str]) -> np.ndarray:
    encoded = [word.encode() for word in words]
    return np.array(encoded, dtype=f"S{max([1, *map(len, encoded)])}")
