"""Writes episodes so that a kill at any moment loses the present one at most.

Order of an episode's files: videos, data, tasks, then its row in meta/episodes, which makes it count, then statistics
and info.json. Each is written beside its place, flushed and renamed. `settle` brings a set whose writer was killed
between two of these renames in order again; every new writer calls it first.
"""

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from featherweight.config.files import TEMPORARY, flush, write_atomically
from featherweight.errors import ConfigError
from featherweight.robot.recording import layout, statistics, tables
from featherweight.robot.recording.layout import Features, file_number, place
from featherweight.robot.recording.video import Picture, VideoWriter, choose_encoder


class DemoWriter:
    """Appends episodes to a data set, or begins one.

    Args:
        root: folder of the set; new, empty, or a set of the same kind.
        fps: frames a second.
        robot_type: name of the robot.
        features: of the data tables, without those that are filled in here; see `layout.robot_features`.
        cameras: name -> (height, width) in pixels, both even.
    Raises:
        ConfigError: if the folder holds something else, or a set with other features, rate or robot.
    """

    def __init__(
        self,
        root: str | Path,
        fps: int,
        robot_type: str,
        features: Features,
        cameras: Mapping[str, tuple[int, int]] | None = None,
    ) -> None:
        self.root, self.fps = Path(root), fps
        self._cameras = dict(cameras or {})
        codec = choose_encoder()[1] if self._cameras else ""
        videos = {
            layout.camera_key(name): layout.camera_feature(*size, fps, codec) for name, size in self._cameras.items()
        }
        self.info = layout.new_info(fps, robot_type, {**features, **videos})
        if (self.root / layout.INFO).exists():
            self._resume()
        elif self.root.exists() and any(self.root.iterdir()):
            raise ConfigError(
                f"record: out={root} holds files that are no data set; expected a new folder or a LeRobot v3.0 set. "
                "Choose another folder."
            )
        else:
            self._say_info([])
        self.rows = tables.read_episodes(self.root)
        self.tasks = tables.read_tasks(self.root / layout.TASKS) if (self.root / layout.TASKS).exists() else []
        self._frames: list[dict[str, Any]] = []
        self._videos: dict[str, VideoWriter] = {}
        self.repeated_pictures = 0
        """Pictures of the last saved episode that the encoder was too slow for."""

    @property
    def cameras(self) -> tuple[str, ...]:
        """Names of the cameras."""
        return tuple(self._cameras)

    @property
    def picture_size_px(self) -> tuple[int, int]:
        """(height, width) of the first camera; (0, 0) without cameras."""
        return next(iter(self._cameras.values()), (0, 0))

    @property
    def frames(self) -> int:
        """Frames of the present episode."""
        return len(self._frames)

    def add(self, values: Mapping[str, Any], pictures: Mapping[str, Picture] | None = None) -> None:
        """Append one frame to the present episode.

        Args:
            values: a number or (width,) numbers for every feature that was given to the writer.
            pictures: camera -> (H, W, 3) picture.
        Raises:
            ConfigError: if a value or a picture is missing, or not finite, or of another shape.
        """
        frame = {}
        for name, feature in self.info["features"].items():
            if feature["dtype"] == "video" or name in layout.AUTOMATIC:
                continue
            value = np.asarray(values.get(name, np.nan), dtype=feature["dtype"]).reshape(-1)
            if len(value) != int(np.prod(feature["shape"])) or not np.isfinite(value).all():
                raise ConfigError(
                    f"record: {name}={values.get(name)} cannot be stored; expected {feature['shape']} finite numbers. "
                    "The frame is left out."
                )
            frame[name] = value
        for name, size in self._cameras.items():
            picture = (pictures or {}).get(name)
            if picture is None or picture.shape != (*size, 3):
                shape = None if picture is None else picture.shape
                raise ConfigError(
                    f"record: picture of {name}={shape} is wrong; expected {(*size, 3)}. Check the camera."
                )
        self._frames.append(frame)
        for name in self._cameras:
            key = layout.camera_key(name)
            if key not in self._videos:
                path = self._path(self.info["video_path"], self._next_file(f"videos/{key}"), key)
                hidden = path.with_name(f".{path.name}.recording{TEMPORARY}")
                self._videos[key] = VideoWriter(hidden, self.fps, *self._cameras[name])
            assert pictures is not None
            self._videos[key].add(pictures[name])

    def discard(self) -> None:
        """Forget the present episode."""
        for video in self._videos.values():
            video.discard()
        self._frames, self._videos = [], {}

    def save(self, task: str) -> int:
        """Write the present episode; return its number.

        Args:
            task: what was done, one sentence.
        Raises:
            ConfigError: if there are no frames, or the disk is full; the finished episodes are whole in any case.
        """
        if not self._frames:
            raise ConfigError("record: frames=0 make no episode; expected at least one. Record for longer.")
        number = len(self.rows)
        try:
            row = self._write_files(number, task)
        except OSError as error:
            self.discard()
            settle(self.root)
            raise ConfigError(
                f"record: out={self.root} cannot be written ({error.strerror or error}); expected a writable folder "
                f"with space. Episode {number} is lost, the {number} before it are whole: free some space and go on."
            ) from error
        self.rows.append(row)
        self._frames, self._videos = [], {}
        return number

    def _write_files(self, number: int, task: str) -> dict[str, Any]:
        described: dict[str, statistics.Statistics] = {}
        length, start = len(self._frames), int(self.rows[-1]["dataset_to_index"]) if self.rows else 0
        tasks = [*self.tasks, task] if task not in self.tasks else self.tasks
        row: dict[str, Any] = {"episode_index": number, "tasks": [task], "length": length}
        self.repeated_pictures = 0
        for key, video in self._videos.items():
            at = self._next_file(f"videos/{key}")
            described[key] = video.close()
            self.repeated_pictures += video.repeated
            path = self._path(self.info["video_path"], at, key)
            os.replace(video.path, path)
            flush(path.parent)
            row |= {f"videos/{key}/{name}": value for name, value in place(at).items()}
            row |= {f"videos/{key}/from_timestamp": 0.0, f"videos/{key}/to_timestamp": length / self.fps}
        columns = {name: np.stack([frame[name] for frame in self._frames]) for name in self._frames[0]}
        frame_index = np.arange(length)
        columns |= {
            "timestamp": (frame_index / self.fps).astype(np.float32),
            "frame_index": frame_index,
            "episode_index": np.full(length, number),
            "index": start + frame_index,
            "task_index": np.full(length, tasks.index(task)),
        }
        described |= {name: statistics.describe_rows(values) for name, values in columns.items()}
        at = self._next_file("data")
        data = {name: columns[name] for name in self.info["features"] if name in columns}
        tables.write_table(self._path(self.info["data_path"], at), tables.frame_table(data, self.info["features"]))
        row |= {f"data/{name}": value for name, value in place(at).items()}
        row |= {"dataset_from_index": start, "dataset_to_index": start + length}
        if tasks is not self.tasks:
            tables.write_tasks(self.root / layout.TASKS, tasks)
            self.tasks = tasks
        at = self._next_file("meta/episodes")
        row |= {f"meta/episodes/{name}": value for name, value in place(at).items()}
        row |= statistics.flatten(described)
        # From here on the episode counts.
        tables.write_rows(self.root / layout.EPISODES.format(**place(at)), [row])
        self._say_info([*self.rows, row])
        return row

    def _say_info(self, rows: list[dict[str, Any]]) -> None:
        write_totals(self.root, self.info, rows)

    def _next_file(self, kind: str) -> int:
        """Return the number of the first file after those of the last episode."""
        numbers = [file_number(row[f"{kind}/chunk_index"], row[f"{kind}/file_index"]) for row in self.rows[-1:]]
        return max(numbers, default=-1) + 1

    def _path(self, pattern: str, at: int, key: str = "") -> Path:
        return self.root / pattern.format(**place(at), video_key=key)

    def _resume(self) -> None:
        """Go on with a set that is there, if it is of the same kind."""
        found = layout.read_info(self.root)
        for name, own, theirs in (
            ("fps", self.fps, found["fps"]),
            ("robot_type", self.info["robot_type"], found.get("robot_type")),
            ("features", _shapes(self.info["features"]), _shapes(found["features"])),
        ):
            if own != theirs:
                raise ConfigError(
                    f"record: {name}={own} differs from that of {self.root}, {theirs}; expected a set of the same "
                    "kind. Choose another folder."
                )
        settle(self.root)
        self.info = layout.read_info(self.root)


def _shapes(features: Features) -> dict[str, Any]:
    return {name: [feature["dtype"], list(feature["shape"])] for name, feature in sorted(features.items())}


def write_totals(root: Path, info: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """Write statistics and info.json for the episodes that there are; `info` is brought up to date."""
    tasks = {task for row in rows for task in row["tasks"]}
    if rows:
        described = [statistics.unflatten(row) for row in rows]
        pooled = {name: statistics.pool(part[name] for part in described) for name in described[0]}
        write_atomically(root / layout.STATS, json.dumps(pooled, indent=1))
    info |= {
        "total_episodes": len(rows),
        "total_frames": int(rows[-1]["dataset_to_index"]) if rows else 0,
        "total_tasks": len(tasks),
        "splits": {"train": f"0:{len(rows)}"} if rows else {},
    }
    write_atomically(root / layout.INFO, json.dumps(info, indent=4))


def settle(root: Path) -> int:
    """Bring a set in order whose writer was killed: remove unfinished files, make info.json say what is there.

    Whole files of an episode that does not count are renamed, so that no reader takes them for frames.

    Returns:
        Files removed or renamed.
    """
    info, rows = layout.read_info(root), tables.read_episodes(root)
    changed = 0
    for path in [path for path in root.rglob(f".*{TEMPORARY}") if path.is_file()]:
        path.unlink()
        changed += 1
    kinds = {"data": "data", **{f"videos/{key}": f"videos/{key}" for key in layout.video_keys(info["features"])}}
    for kind, folder in kinds.items():
        used = {(row[f"{kind}/chunk_index"], row[f"{kind}/file_index"]) for row in rows}
        last = max((file_number(*at) for at in used), default=-1)
        for path in [*(root / folder).glob("chunk-*/file-???.parquet"), *(root / folder).glob("chunk-*/file-???.mp4")]:
            with contextlib.suppress(ValueError):
                at = file_number(int(path.parent.name.removeprefix("chunk-")), int(path.stem.removeprefix("file-")))
                if at > last:
                    path.rename(path.with_name(path.name + ".unfinished"))
                    changed += 1
    if info["total_episodes"] != len(rows) or (rows and not (root / layout.STATS).exists()):
        write_totals(root, info, rows)
    return changed
