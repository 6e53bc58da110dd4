"""Reads any LeRobot v3.0 data set, ours or others'."""

import bisect
import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featherweight.errors import ConfigError, did_you_mean
from featherweight.robot.recording import layout, tables
from featherweight.robot.recording.video import TOLERANCE_S, read_pictures


class DemoDataset:
    """Frames of a data set by number; torch's DataLoader takes it as it is.

    Items are dicts: feature -> number or array, camera -> (3, H, W) float32 from 0 to 1, and "task". With
    `delta_timestamps` a feature becomes a stack over the times asked for, and ``<feature>_is_pad`` says which of them
    lie beyond the episode, where its first or last frame is repeated.

    Args:
        root: folder of the set.
        delta_timestamps: feature -> seconds relative to the frame, multiples of 1 / fps.
    Raises:
        ConfigError: if the set is missing, damaged or of another version.
    """

    def __init__(self, root: str | Path, delta_timestamps: Mapping[str, Sequence[float]] | None = None) -> None:
        self.root = Path(root)
        self.info = layout.read_info(root)
        self.fps: float = self.info["fps"]
        self.features: layout.Features = self.info["features"]
        self.episodes = tables.read_episodes(self.root)
        self._ends = [int(row["dataset_to_index"]) for row in self.episodes]
        self._deltas = {key: self._offsets(key, times) for key, times in (delta_timestamps or {}).items()}

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    @cached_property
    def tasks(self) -> list[str]:
        """Sentences of the tasks by number."""
        return tables.read_tasks(self.root / layout.TASKS)

    @cached_property
    def columns(self) -> dict[str, NDArray[Any]]:
        """Feature -> (frames, width) or (frames,) numbers of the whole set."""
        names = layout.number_keys(self.features)
        places = dict.fromkeys((row["data/chunk_index"], row["data/file_index"]) for row in self.episodes)
        parts: dict[str, list[NDArray[Any]]] = {name: [] for name in names}
        for chunk_index, file_index in places:
            path = self.root / self.info["data_path"].format(chunk_index=chunk_index, file_index=file_index)
            table = tables.read_table(path, names)
            for name in names:
                parts[name].append(tables.to_array(table[name]))
        joined = {name: np.concatenate(part) if part else np.zeros(0) for name, part in parts.items()}
        if len(joined["index"]) < len(self):
            raise ConfigError(
                f"data set: frames={len(joined['index'])} of {self.root} are fewer than its episodes', {len(self)}; "
                "expected all of them. Run fw robot dataset check."
            )
        return {name: values[: len(self)] for name, values in joined.items()}

    def episode(self, number: int) -> dict[str, NDArray[Any]]:
        """Return the numbers of one episode.

        Raises:
            ConfigError: if there is no such episode.
        """
        if not 0 <= number < len(self.episodes):
            raise ConfigError(
                f"data set: episode={number} is not in {self.root}; expected 0 to {len(self.episodes) - 1}. Choose one "
                "of these."
            )
        start = self._ends[number - 1] if number else 0
        return {name: values[start : self._ends[number]] for name, values in self.columns.items()}

    def pictures(self, key: str, number: int) -> NDArray[np.uint8]:
        """Return the (length, H, W, 3) pictures of one episode.

        Args:
            key: a feature that is a video.
            number: of the episode.
        Raises:
            ConfigError: if the video cannot be read or lacks a picture.
        """
        row = self.episodes[number]
        path, start_s = self._video(key, row)
        times_s = [start_s + frame / self.fps for frame in range(int(row["length"]))]
        return np.stack(read_pictures(path, times_s, TOLERANCE_S))

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"data set: index={index} is beyond its {len(self)} frames")
        index %= len(self)
        number = bisect.bisect_right(self._ends, index)
        start, end = (self._ends[number - 1] if number else 0), self._ends[number]
        item: dict[str, Any] = {}
        for name, values in self.columns.items():
            rows, is_pad = self._rows(name, index, start, end)
            item[name] = values[index] if rows is None else values[rows]
            if is_pad is not None:
                item[f"{name}_is_pad"] = is_pad
        for key in layout.video_keys(self.features):
            rows, is_pad = self._rows(key, index, start, end)
            pictures = self._pictures(
                key, self.episodes[number], [index - start] if rows is None else list(rows - start)
            )
            item[key] = pictures[0] if rows is None else np.stack(pictures)
            if is_pad is not None:
                item[f"{key}_is_pad"] = is_pad
        item["task"] = self.tasks[int(item["task_index"])]
        return item

    def _rows(
        self, name: str, index: int, start: int, end: int
    ) -> tuple[NDArray[np.int64] | None, NDArray[np.bool_] | None]:
        offsets = self._deltas.get(name)
        if offsets is None:
            return None, None
        rows = index + offsets
        return np.clip(rows, start, end - 1), (rows < start) | (rows >= end)

    def _pictures(self, key: str, row: Mapping[str, Any], frames: Sequence[int]) -> list[NDArray[np.float32]]:
        path, start_s = self._video(key, row)
        times = [start_s + frame / self.fps for frame in frames]
        return [
            np.ascontiguousarray(picture.transpose(2, 0, 1), dtype=np.float32) / np.float32(255)
            for picture in read_pictures(path, times, TOLERANCE_S)
        ]

    def _video(self, key: str, row: Mapping[str, Any]) -> tuple[Path, float]:
        at = {name: row[f"videos/{key}/{name}"] for name in ("chunk_index", "file_index")}
        path = self.root / self.info["video_path"].format(video_key=key, **at)
        return path, float(row[f"videos/{key}/from_timestamp"])

    def _offsets(self, key: str, times_s: Sequence[float]) -> NDArray[np.int64]:
        if key not in self.features:
            raise ConfigError(
                f"data set: delta_timestamps={key} is no feature; expected one. {did_you_mean(key, self.features)}"
            )
        frames = [time_s * self.fps for time_s in times_s]
        if any(not math.isclose(frame, round(frame), abs_tol=TOLERANCE_S * self.fps) for frame in frames):
            raise ConfigError(
                f"data set: delta_timestamps of {key}={list(times_s)} are no multiples of 1/{self.fps} s; expected "
                "times of frames. Round them."
            )
        return np.array([round(frame) for frame in frames], dtype=np.int64)
