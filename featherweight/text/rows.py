"""Rows of chat data from wherever a user has them, each with the place where it stands.

JSON and CSV are read by Python itself: a table of columns, as the package `datasets` builds one, would give every tool
call the arguments of all others, turn "007" into a number, and could not say in which line a row stands. Parquet,
Arrow, folders that `datasets` wrote and data sets of the hub go through its builders.
"""

import bz2
import csv
import gzip
import io
import itertools
import json
import logging
import lzma
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TextIO, cast

from featherweight.errors import ConfigError, MissingExtraError, did_you_mean
from featherweight.text.corpus import HUB_PREFIX, load_hub_rows

Row = Mapping[str, Any]


def _open_zstandard(path: Path) -> BinaryIO:
    try:
        import zstandard
    except ImportError as error:
        raise MissingExtraError(
            f"data: file={path} is compressed by zstandard, whose package is not installed; expected it. Install it "
            "by: pip install zstandard"
        ) from error
    return cast(BinaryIO, zstandard.open(path, "rb"))


_OPENERS: dict[str, Callable[[Path], BinaryIO]] = {
    ".gz": lambda path: cast(BinaryIO, gzip.open(path, "rb")),
    ".bz2": lambda path: cast(BinaryIO, bz2.open(path, "rb")),
    ".xz": lambda path: cast(BinaryIO, lzma.open(path, "rb")),
    ".zst": _open_zstandard,
}
_LINES, _LIST = (".jsonl", ".ndjson"), (".json",)
_LIST_NAMES = ("data", "rows", "examples", "train")
_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_BUILDERS = {".parquet": "parquet", ".arrow": "arrow"}
ENDINGS = (*_LINES, *_LIST, *_DELIMITERS, *_BUILDERS)
"""Of files that are read; texts may be compressed: .gz, .bz2, .xz, .zst."""


def read_rows(source: str, *, is_streamed: bool = False) -> Iterator[tuple[str, Row]]:
    """Yield the rows of a source with their places, in a fixed order.

    Args:
        source: a file (see `ENDINGS`), a folder of such files, a folder that `datasets` wrote, or
            ``hf:name[:config][:split]``.
        is_streamed: take the rows of a data set of the hub from there as they are asked for.
    Yields:
        (place, row): "chats.jsonl, line 3" and column to value.
    Raises:
        ConfigError: if the source is missing, empty, damaged, not UTF-8, or of no known kind.
    Cost: one row at a time for JSON lines, CSV and parquet; a .json file is read whole.
    """
    count = 0
    for place_and_row in _rows(source, is_streamed):
        count += 1
        yield place_and_row
    if not count:
        raise ConfigError(f"data: data={source} holds no row; expected one or more. Fill the file, or name another.")


def row_files(source: str) -> list[str]:
    """Return what a source is read from, in a fixed order: the files of a folder, or the source itself."""
    path = Path(source).expanduser()
    if source.startswith(HUB_PREFIX) or not path.is_dir() or _is_written_by_datasets(path):
        return [source]
    return [str(file) for file in _files_below(path)] or [source]


def _rows(source: str, is_streamed: bool) -> Iterator[tuple[str, Row]]:
    path = Path(source).expanduser()
    if not source.strip():
        raise ConfigError(
            f"data: data={source!r} names nothing; expected a file, a folder, or '{HUB_PREFIX}name'. Write a path."
        )
    if source.startswith(HUB_PREFIX):
        yield from _numbered(load_hub_rows(source, is_streamed=is_streamed), source)
    elif not path.exists():
        near = [entry.name for entry in path.parent.iterdir()][:200] if path.parent.is_dir() else []
        raise ConfigError(
            f"data: data={source} does not exist; expected a file, a folder, or '{HUB_PREFIX}name'. "
            f"{did_you_mean(path.name, near)}"
        )
    elif not path.is_dir():
        yield from _file_rows(path)
    elif _is_written_by_datasets(path):
        yield from _numbered(load_hub_rows(f"{HUB_PREFIX}{path}"), source)
    else:
        files = _files_below(path)
        if not files:
            raise ConfigError(
                f"data: data={source} is a folder without readable files; expected files that end in "
                f"{', '.join(ENDINGS)}. Choose another folder, or convert the files."
            )
        for file in files:
            yield from _file_rows(file)


def _is_written_by_datasets(folder: Path) -> bool:
    return (folder / "state.json").exists() or (folder / "dataset_dict.json").exists()


def _files_below(folder: Path) -> list[Path]:
    return [file for file in sorted(folder.rglob("*")) if file.is_file() and _kind(file)[0] in ENDINGS]


def _kind(path: Path) -> tuple[str, str]:
    """Return the ending that tells the format, and the one of its compression or ""."""
    endings = [ending.lower() for ending in path.suffixes[-2:]]
    if endings and endings[-1] in _OPENERS:
        return (endings[0] if len(endings) == 2 else ""), endings[-1]
    return (endings[-1] if endings else ""), ""


def _file_rows(path: Path) -> Iterator[tuple[str, Row]]:
    ending, packed = _kind(path)
    if ending not in ENDINGS:
        raise ConfigError(
            f"data: file={path} has the unknown ending {path.suffix!r}; expected one of {', '.join(ENDINGS)}, perhaps "
            f"with {', '.join(_OPENERS)} behind it. Rename the file after its format."
        )
    try:
        if ending in _BUILDERS:
            yield from _numbered(_table(path, ending), str(path))
        else:
            opened = _OPENERS[packed](path) if packed else open(path, "rb")
            with io.TextIOWrapper(opened, encoding="utf-8-sig", newline="") as text:
                if ending in _DELIMITERS:
                    yield from _table_rows(text, path, _DELIMITERS[ending])
                else:
                    yield from _json_rows(text, path, is_lines=ending in _LINES)
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"data: file={path} is no UTF-8 text at byte {error.start}; expected UTF-8. Convert the file, for example "
            "with: iconv -f latin1 -t utf-8"
        ) from error
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        raise ConfigError(
            f"data: file={path} cannot be read ({getattr(error, 'strerror', None) or error}); expected a whole, "
            "readable file. Copy it again, or check its permissions."
        ) from error


def _json_rows(text: TextIO, path: Path, *, is_lines: bool) -> Iterator[tuple[str, Row]]:
    lines: Iterable[str] = text
    if not is_lines:
        whole = text.read()
        if whole.lstrip()[:1] != "{" or _is_one_value(whole):
            yield from _listed(_parsed(whole, path, 1), path)
            return
        lines = whole.split("\n")
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield f"{path.name}, line {number}", _parsed(line.rstrip(), path, number)


def _is_one_value(text: str) -> bool:
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        return error.msg != "Extra data"
    return True


def _listed(value: Any, path: Path) -> Iterator[tuple[str, Row]]:
    """Yield the rows of a list, of a list under a name that says no more ({"data": [...]}), or an object as one row."""
    if isinstance(value, dict):
        named = [inner for name, inner in value.items() if name in _LIST_NAMES and isinstance(inner, list)]
        value = named[0] if len(named) == 1 and len(value) == 1 else [value]
    if not isinstance(value, list):
        raise ConfigError(
            f"data: file={path} holds a JSON {type(value).__name__}; expected a list of objects, or one object on each "
            "line. Put the rows into one list."
        )
    for number, row in enumerate(value, 1):
        yield f"{path.name}, row {number}", row


def _parsed(text: str, path: Path, first_line: int) -> Any:
    try:
        value = json.loads(text, object_pairs_hook=_unique)
    except _Twice as twice:
        where = f"{path.name}, line {first_line}" if first_line > 1 or "\n" not in text else path.name
        raise ConfigError(
            f"{where}: key={str(twice)!r} stands there twice in one object; expected each key once, as one value would "
            "be lost. Correct the row."
        ) from None
    except RecursionError:
        raise ConfigError(
            f"{path.name}, line {first_line}: the row is nested too deep to be read; expected columns with texts or "
            "lists of messages. Correct the row."
        ) from None
    except json.JSONDecodeError as error:
        raise ConfigError(
            f"data: file={path} is no JSON at line {first_line + error.lineno - 1}, column {error.colno} "
            f"({error.msg}); expected a list of objects, or one object on each line. Correct the line."
        ) from error
    except ValueError as error:  # a whole number of thousands of digits
        raise ConfigError(
            f"{path.name}, line {first_line}: a value cannot be read ({error}); expected texts and ordinary numbers. "
            "Correct the row."
        ) from error
    _require_text(value, text, path, first_line)
    return value


class _Twice(ValueError):
    """A key that an object has twice."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise _Twice(next(name for name in names if names.count(name) > 1))
    return found


def _require_text(value: Any, text: str, path: Path, line: int) -> None:
    """Refuse halves of characters, which JSON can write and no tokenizer reads."""
    if "\\ud" not in text.lower():
        return
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise ConfigError(
            f"{path.name}, line {line}: the row holds half a character ({error.object[error.start]!a}, a surrogate "
            "alone), which is no text; expected whole characters. Correct the row."
        ) from None


def _table_rows(text: TextIO, path: Path, delimiter: str) -> Iterator[tuple[str, Row]]:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # a document is longer than the default of 128 KiB
    lines = iter(text)
    first = next(lines, "")
    if delimiter == "," and "," not in first:
        delimiter = next((one for one in ";\t" if one in first), ",")  # as programs write them where 1,5 is a number
    rows = csv.DictReader(itertools.chain([first] if first else [], lines), delimiter=delimiter, strict=True)
    try:
        names = rows.fieldnames or []
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ConfigError(
                f"{path.name}, line 1: column={twice!r} stands there twice; expected each name once, as one of the two "
                "would be lost. Rename one of them."
            )
        for row in rows:
            where = f"{path.name}, line {rows.line_num}"
            if None in row or None in row.values():
                more = "more" if None in row else "fewer"
                raise ConfigError(
                    f"{where}: the row has {more} cells than the first line, whose columns are "
                    f"{', '.join(rows.fieldnames or ())}; expected as many. Put texts with commas into quotation marks."
                )
            yield where, row
    except csv.Error as error:
        raise ConfigError(
            f"data: file={path} is no table at line {rows.line_num} ({error}); expected cells in quotation marks that "
            "end. Correct the line."
        ) from error


def _table(path: Path, ending: str) -> Any:
    """Return the rows of a table, one at a time, as the builders of `datasets` read them."""
    import datasets
    from pyarrow import parquet

    try:
        if ending == ".parquet" and parquet.read_metadata(path).num_rows == 0:
            return ()
        with _quiet_datasets():
            return datasets.load_dataset(_BUILDERS[ending], data_files=str(path), split="train", streaming=True)
    except Exception as error:  # of a dozen classes, its own and those of the libraries below
        raise _unreadable(path, error) from error


def _numbered(rows: Any, source: str) -> Iterator[tuple[str, Row]]:
    name = source if source.startswith(HUB_PREFIX) else Path(source).name
    classes = _class_names(rows)
    iterator = iter(rows)
    number = 0
    while True:
        number += 1
        try:
            with _quiet_datasets():
                row = next(iterator)
        except StopIteration:
            return
        except Exception as error:  # as above: streaming reads late
            raise _unreadable(Path(source), error) from error
        for column, names in classes.items():
            # Data sets of the hub write labels as numbers and keep their names apart; -1 is no label.
            if isinstance(row[column], int):
                row = {**row, column: names[row[column]] if 0 <= row[column] < len(names) else None}
        yield f"{name}, row {number}", row


@contextmanager
def _quiet_datasets() -> Iterator[None]:
    """Let the package log nothing inside the block: what it logs is raised, too, and becomes one sentence."""
    logger = logging.getLogger("datasets")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(level)


def _class_names(rows: Any) -> dict[str, list[str]]:
    """Return the names of the classes of columns that hold their numbers, of a table of `datasets`."""
    features = getattr(rows, "features", None) or {}
    return {column: kind.names for column, kind in features.items() if type(kind).__name__ == "ClassLabel"}


def _unreadable(path: Path, error: Exception) -> ConfigError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
    return ConfigError(
        f"data: file={path} cannot be read ({reason}); expected a whole table of its format. Copy or convert it again."
    )
