"""Looks at every file of a data set, and cuts a damaged one down to the episodes that are whole.

What `repair` takes out is moved to a folder beside the set, never deleted.
"""

import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from featherweight.errors import ConfigError
from featherweight.robot.recording import layout, tables
from featherweight.robot.recording.video import TOLERANCE_S, count_pictures
from featherweight.robot.recording.writer import settle, write_totals


@dataclass
class CheckResult:
    """What a data set holds and what is wrong with it."""

    episodes: int = 0
    """Rows of episodes."""
    whole: int = 0
    """Episodes from the first one on whose files are all right."""
    frames: int = 0
    problems: list[str] = field(default_factory=list)
    """One sentence each; empty for a clean set."""


def check(root: str | Path) -> CheckResult:
    """Check every episode's rows, videos and numbers.

    Raises:
        ConfigError: if there is no data set, or info.json is damaged.
    """
    root = Path(root)
    info = layout.read_info(root)
    result = CheckResult()
    try:
        rows = tables.read_episodes(root)
    except ConfigError as error:
        rows = _readable_episodes(root)
        result.problems.append(str(error))
    result.episodes, result.frames = len(rows), int(rows[-1]["dataset_to_index"]) if rows else 0
    is_whole = True
    for row in rows:
        problem = _problem_of(root, info, row)
        if problem:
            result.problems.append(f"episode {row['episode_index']}: {problem}")
            is_whole = False
        result.whole += is_whole
    if info["total_episodes"] != len(rows):
        result.problems.append(f"info.json says {info['total_episodes']} episodes; there are rows of {len(rows)}")
    if rows and not (root / layout.STATS).exists():
        result.problems.append("meta/stats.json is not there")
    return result


def repair(root: str | Path) -> CheckResult:
    """Keep the episodes from the first one on that are whole; return what was kept.

    Raises:
        ConfigError: if there is no data set, or info.json is damaged.
    """
    root = Path(root)
    settle_or_leave(root)
    found = check(root)
    if not found.problems:
        return found
    info = layout.read_info(root)
    rows = _readable_episodes(root)[: found.whole]
    aside = root.with_name(f"{root.name}-removed-{time.strftime('%Y%m%d-%H%M%S')}")
    kept_data = {(row["data/chunk_index"], row["data/file_index"]) for row in rows}
    for chunk_index, file_index in kept_data:
        path = root / info["data_path"].format(chunk_index=chunk_index, file_index=file_index)
        _cut_table(path, len(rows), aside / path.relative_to(root))
    keep = {root / info["data_path"].format(chunk_index=c, file_index=f) for c, f in kept_data}
    for key in layout.video_keys(info["features"]):
        keep |= {_video_path(root, info, key, row) for row in rows}
    for folder in ("data", "videos"):
        for path in sorted((root / folder).rglob("*.*")):
            if path.is_file() and path not in keep:
                _move(path, aside / path.relative_to(root))
    for path in sorted((root / "meta" / "episodes").rglob("*.parquet")):
        _move(path, aside / path.relative_to(root))
    for chunk in range(0, len(rows), layout.CHUNK_FILES):
        at = layout.place(chunk // layout.CHUNK_FILES)
        part = [row | {f"meta/episodes/{name}": value for name, value in at.items()} for row in rows[chunk:][:1000]]
        tables.write_rows(root / layout.EPISODES.format(**at), part)
    write_totals(root, info, rows)
    return check(root)


def settle_or_leave(root: Path) -> None:
    """Finish what a killed writer left, where the tables of episodes can be read."""
    try:
        settle(root)
    except ConfigError:
        layout.read_info(root)  # what cannot be read at all cannot be repaired, and says so


def describe(root: str | Path) -> dict[str, Any]:
    """Return what a person wants to know of a data set."""
    info, rows = layout.read_info(root), tables.read_episodes(Path(root))
    frames = int(rows[-1]["dataset_to_index"]) if rows else 0
    return {
        "robot": info.get("robot_type"),
        "fps": info["fps"],
        "episodes": len(rows),
        "frames": frames,
        "duration_s": frames / info["fps"],
        "tasks": sorted({task for row in rows for task in row["tasks"]}),
        "features": {
            name: f"{feature['dtype']} {list(feature['shape'])}"
            for name, feature in info["features"].items()
            if name not in layout.AUTOMATIC
        },
    }


def _problem_of(root: Path, info: dict[str, Any], row: dict[str, Any]) -> str | None:
    """Return what is wrong with one episode."""
    at = {name: row[f"data/{name}"] for name in ("chunk_index", "file_index")}
    names = layout.number_keys(info["features"])
    try:
        table = tables.read_table(root / info["data_path"].format(**at), names)
        own = np.asarray(tables.to_array(table["episode_index"])) == row["episode_index"]
        columns = {name: tables.to_array(table[name])[own] for name in names}
        if len(columns["index"]) != row["length"]:
            return f"{len(columns['index'])} rows of data; expected {row['length']}"
        wanted = np.arange(row["dataset_from_index"], row["dataset_to_index"])
        if not np.array_equal(columns["index"], wanted) or len(wanted) != row["length"]:
            return "the numbers of its rows have gaps"
        if np.abs(columns["timestamp"] - columns["frame_index"] / info["fps"]).max() > TOLERANCE_S:
            return "its times are not those of its frames"
        for name, values in columns.items():
            if not np.isfinite(values).all():
                return f"{name} holds values that are no numbers"
        for key in layout.video_keys(info["features"]):
            path = _video_path(root, info, key, row)
            least = round(float(row[f"videos/{key}/to_timestamp"]) * info["fps"])
            if (count := count_pictures(path)) < least:
                return f"{path.name} of {key} has {count} pictures; expected {least}"
    except ConfigError as error:
        return str(error)
    return None


def _readable_episodes(root: Path) -> list[dict[str, Any]]:
    """Return the rows of episodes up to the first table that cannot be read."""
    rows: list[dict[str, Any]] = []
    for path in sorted((root / "meta" / "episodes").glob("chunk-*/file-*.parquet")):
        try:
            found = tables.read_table(path).to_pylist()
        except ConfigError:
            break
        for row in found:
            if row["episode_index"] != len(rows):
                return rows
            rows.append(row)
    return rows


def _video_path(root: Path, info: dict[str, Any], key: str, row: dict[str, Any]) -> Path:
    at = {name: row[f"videos/{key}/{name}"] for name in ("chunk_index", "file_index")}
    return root / str(info["video_path"]).format(video_key=key, **at)


def _cut_table(path: Path, episodes: int, aside: Path) -> None:
    """Leave the rows of the first episodes in a table of data; a copy of the whole goes aside if rows go."""
    table = tables.read_table(path)
    keep = tables.to_array(table["episode_index"]) < episodes
    if not keep.all():
        aside.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, aside)
        tables.write_table(path, table.filter(tables.import_arrow().array(keep)))


def _move(path: Path, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(path, to)
