"""Where the files of a LeRobot v3.0 data set stand, and what its info.json says.

Source: the code of LeRobot 0.4.4 (`datasets/utils.py`), which the version's documentation differs from in places.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from featherweight.errors import ConfigError
from featherweight.robot.kit import JOINT_KEYS

VERSION = "v3.0"
CHUNK_FILES = 1000
"""Files in one folder."""
INFO, STATS, TASKS = "meta/info.json", "meta/stats.json", "meta/tasks.parquet"
FILE = "chunk-{chunk_index:03d}/file-{file_index:03d}"
EPISODES = f"meta/episodes/{FILE}.parquet"
DATA = f"data/{FILE}.parquet"
VIDEO = "videos/{video_key}/" + FILE + ".mp4"

Feature = dict[str, Any]
Features = dict[str, Feature]

AUTOMATIC: Features = {
    "timestamp": {"dtype": "float32", "shape": [1], "names": None},
    "frame_index": {"dtype": "int64", "shape": [1], "names": None},
    "episode_index": {"dtype": "int64", "shape": [1], "names": None},
    "index": {"dtype": "int64", "shape": [1], "names": None},
    "task_index": {"dtype": "int64", "shape": [1], "names": None},
}
"""What every data set has, filled in by the writer."""

NUMBERS = ("float32", "float64", "int64", "int32", "bool")


def vector(names: tuple[str, ...] | list[str], dtype: str = "float32") -> Feature:
    """Return the feature of a row of named numbers."""
    return {"dtype": dtype, "shape": [len(names)], "names": list(names)}


def robot_features(extra: Mapping[str, Feature] | None = None) -> Features:
    """Return action and state of the arm (degrees, in the order of the wire), time, and further features."""
    return {
        "action": vector(JOINT_KEYS),
        "observation.state": vector(JOINT_KEYS),
        "observation.t_mono": {"dtype": "float64", "shape": [1], "names": None},
        **(extra or {}),
    }


def camera_key(name: str) -> str:
    """Return the feature of a camera."""
    return f"observation.images.{name}"


def camera_feature(height_px: int, width_px: int, fps: int, codec: str) -> Feature:
    """Return the feature of a video."""
    return {
        "dtype": "video",
        "shape": [height_px, width_px, 3],
        "names": ["height", "width", "channels"],
        "info": {
            "video.height": height_px,
            "video.width": width_px,
            "video.codec": codec,
            "video.pix_fmt": "yuv420p",
            "video.is_depth_map": False,
            "video.fps": fps,
            "video.channels": 3,
            "has_audio": False,
        },
    }


def new_info(fps: int, robot_type: str, features: Features) -> dict[str, Any]:
    """Return the info of an empty data set."""
    has_video = any(feature["dtype"] == "video" for feature in features.values())
    return {
        "codebase_version": VERSION,
        "robot_type": robot_type,
        "total_episodes": 0,
        "total_frames": 0,
        "total_tasks": 0,
        "chunks_size": CHUNK_FILES,
        "data_files_size_in_mb": 100,
        "video_files_size_in_mb": 200,
        "fps": fps,
        "splits": {},
        "data_path": DATA,
        "video_path": VIDEO if has_video else None,
        "features": {**features, **AUTOMATIC},
    }


def read_info(root: str | Path) -> dict[str, Any]:
    """Read and check info.json.

    Raises:
        ConfigError: if there is no data set, it is of another version, or the file is damaged.
    """
    path = Path(root) / INFO
    try:
        info: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        version, fps, features = info["codebase_version"], info["fps"], info["features"]
        for name, feature in features.items():
            feature["dtype"], tuple(feature["shape"]), str(name)
    except FileNotFoundError as error:
        raise ConfigError(
            f"data set: root={root} has no {INFO}; expected a LeRobot v3.0 data set. Record one with fw robot record."
        ) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"data set: file={path} is damaged ({error!r}); expected the info of a LeRobot v3.0 data set. Run "
            "fw robot dataset repair, or take the file from a copy."
        ) from error
    if version != VERSION:
        raise ConfigError(
            f"data set: codebase_version={version} of {root} is not supported; expected {VERSION}. Convert it with "
            "LeRobot's convert_dataset_v21_to_v30."
        )
    if not (isinstance(fps, int | float) and fps > 0):
        raise ConfigError(f"data set: fps={fps!r} of {path} is no rate; expected a number above 0. Correct the file.")
    return info


def video_keys(features: Mapping[str, Feature]) -> list[str]:
    """Return the features that are videos."""
    return [name for name, feature in features.items() if feature["dtype"] == "video"]


def number_keys(features: Mapping[str, Feature]) -> list[str]:
    """Return the features whose values stand in the data tables as numbers."""
    return [name for name, feature in features.items() if feature["dtype"] in NUMBERS]


def place(episode_file: int) -> dict[str, int]:
    """Return chunk and file of the nth file."""
    return {"chunk_index": episode_file // CHUNK_FILES, "file_index": episode_file % CHUNK_FILES}


def file_number(chunk_index: int, file_index: int) -> int:
    """Return which file, counted over all chunks, stands at a place."""
    return chunk_index * CHUNK_FILES + file_index
