"""From where the rows of a task come: one file, folder or data set, or several of them with weights.

A recipe says `data: chats.jsonl`, or a list of sources, each a path or `{path, weight, columns, ignore_columns}`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field

from featherweight.config import Config
from featherweight.errors import ConfigError


class Source(Config):
    """One of several sources of rows."""

    path: str
    """A file, a folder of files, or hf:name[:config][:split]."""
    weight: float | None = Field(default=None, gt=0)
    """How often its rows come, against those of the other sources; all sources have one, or none. None: every row comes
    once in an epoch."""
    columns: dict[str, str] | None = None
    """Names of its columns for the fields of a row; None: those of the task."""
    ignore_columns: list[str] | None = None
    """Columns with text that are left out on purpose; None: those of the task."""


ONLY_CHAT_STREAMS = (
    "is an option of the task chat alone; expected none, as this task reads its data before training begins. Leave it "
    "out, and take fewer rows (max_train_rows, or max_train_tokens of a text) where they do not fit into memory."
)
"""What every other task says to `stream`, behind its value."""

Data = str | list[str | Source]
"""What stands under the key `data`."""


def sources_of(
    data: Data, columns: Mapping[str, str], ignore_columns: Sequence[str], *, where: str
) -> list[tuple[Source, dict[str, Any]]]:
    """Return sources with the keyword arguments by which their rows are read.

    Args:
        data: of the task.
        columns: of the task, for sources that name none.
        ignore_columns: likewise.
        where: opens messages.
    Raises:
        ConfigError: for an empty list, a source that stands there twice, or weights of some sources alone.
    """
    named = [data] if isinstance(data, str) else data
    sources = [one if isinstance(one, Source) else Source(path=one) for one in named]
    if not sources:
        raise ConfigError(f"{where}: data=[] names no source; expected one or more. Add a path.")
    paths = [one.path for one in sources]
    twice = next((path for path in paths if paths.count(path) > 1), None)
    if twice is not None:
        raise ConfigError(
            f"{where}: data={twice} stands there twice; expected each source once. Give it a weight instead."
        )
    without = [one.path for one in sources if one.weight is None]
    if without and len(without) < len(sources):
        raise ConfigError(
            f"{where}: data={without[0]} has no weight, and other sources have one; expected weights for all or for "
            "none. Add one: {path: " + without[0] + ", weight: 1}."
        )
    return [
        (
            one,
            {
                "columns": columns if one.columns is None else one.columns,
                "ignore_columns": ignore_columns if one.ignore_columns is None else one.ignore_columns,
            },
        )
        for one in sources
    ]


def weights_of(data: Data) -> list[float] | None:
    """Return the weights of the sources; None if rows are not weighted."""
    if isinstance(data, str):
        return None
    found = [one.weight for one in data if isinstance(one, Source) and one.weight is not None]
    return found if len(found) == len(data) and len(found) > 1 else None


def data_name(data: Data) -> str:
    """Return what reports and messages call the data.

    Example:
        >>> data_name(["a.jsonl", Source(path="b.jsonl", weight=2)])
        'a.jsonl, b.jsonl (weight 2)'
    """
    if isinstance(data, str):
        return data
    names = [(one, None) if isinstance(one, str) else (one.path, one.weight) for one in data]
    return ", ".join(name if weight is None else f"{name} (weight {weight:g})" for name, weight in names)
