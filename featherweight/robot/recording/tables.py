"""The tables of a data set as parquet: frames, episodes, tasks."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featherweight.config.files import new_file
from featherweight.errors import ConfigError, MissingExtraError
from featherweight.robot.recording.layout import Features

Columns = dict[str, NDArray[Any]]


def import_arrow() -> Any:
    """Import pyarrow with its parquet module, or say how to install it."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingExtraError(
            "robot: package=pyarrow is not installed; expected it for recordings. Run pip install featherweight[robot]."
        ) from error
    return pyarrow


def frame_table(columns: Mapping[str, NDArray[Any]], features: Features) -> Any:
    """Return the arrow table of frames: vectors as lists of fixed size, features of one number as numbers.

    Args:
        columns: name -> (n, width) or (n,) values.
        features: of the data set; a column takes the dtype of its feature.
    """
    pa = import_arrow()
    arrays = {}
    for name, values in columns.items():
        feature = features[name]
        flat = pa.array(np.ascontiguousarray(values, dtype=feature["dtype"]).reshape(-1))
        width = int(np.prod(feature["shape"]))
        arrays[name] = flat if width == 1 else pa.FixedSizeListArray.from_arrays(flat, width)
    return pa.table(arrays)


def write_table(path: Path, table: Any) -> None:
    """Write a table whole or not at all, on the disk when this returns."""
    parquet = import_arrow().parquet
    with new_file(path) as temporary:
        parquet.write_table(table, temporary, compression="snappy")


def read_table(path: Path, columns: Sequence[str] | None = None) -> Any:
    """Read a table.

    Raises:
        ConfigError: if it is missing, truncated or has not the columns.
    """
    pa = import_arrow()
    try:
        return pa.parquet.read_table(path, columns=columns, memory_map=True)
    except (OSError, ValueError, KeyError) as error:
        reason = "it is not there" if isinstance(error, FileNotFoundError) else " ".join(str(error).split())[:200]
        raise ConfigError(
            f"data set: file={path} cannot be read ({reason}); expected a whole parquet file. Run fw robot dataset "
            "repair on a copy, or fetch the file again."
        ) from error


def to_array(column: Any) -> NDArray[Any]:
    """Return an arrow column of numbers, or of lists of equal length, as (n,) or (n, width)."""
    pa = import_arrow()
    kind = column.type
    if not (pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind)):
        result: NDArray[Any] = column.to_numpy()
        return result
    parts = [chunk.flatten() for chunk in column.chunks]
    values = np.concatenate([to_array(pa.chunked_array([part])) for part in parts]) if parts else np.zeros(0)
    return values.reshape(len(column), -1)


def write_tasks(path: Path, tasks: Sequence[str]) -> None:
    """Write the sentences of the tasks; LeRobot reads them by position, as the index of a pandas frame."""
    import pandas

    frame = pandas.DataFrame(
        {"task_index": np.arange(len(tasks), dtype=np.int64)}, index=pandas.Index(tasks, name="task")
    )
    with new_file(path) as temporary:
        frame.to_parquet(temporary)


def read_tasks(path: Path) -> list[str]:
    """Return the sentences of the tasks in the order of their numbers."""
    rows = read_table(path).to_pylist()
    names = [key for key in (rows[0] if rows else {}) if key != "task_index"]
    return [str(row[names[0]]) for row in sorted(rows, key=lambda row: int(row["task_index"]))] if names else []


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows of episodes; the types follow from the values."""
    write_table(path, import_arrow().Table.from_pylist([dict(row) for row in rows]))


def read_episodes(root: Path) -> list[dict[str, Any]]:
    """Return the rows of all episodes, in order; what stands behind a gap in their numbers is left out."""
    rows: list[dict[str, Any]] = []
    for path in sorted((Path(root) / "meta" / "episodes").glob("chunk-*/file-*.parquet")):
        rows += read_table(path).to_pylist()
    rows.sort(key=lambda row: int(row["episode_index"]))
    for number, row in enumerate(rows):
        if row["episode_index"] != number:
            return rows[:number]
    return rows
