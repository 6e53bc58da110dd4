"""Documents of text from wherever a user has them, and their split into training and held-out documents.

A document is a string that belongs together; nothing here knows about tokens. Everything comes in a fixed order, so
that two machines with the same files train on the same text.
"""

import csv
import hashlib
import importlib
import itertools
import json
import re
import sys
import sysconfig
import tokenize
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from featherweight.errors import ConfigError, did_you_mean
from featherweight.models.hub import require_hub

BLANK_LINES = re.compile(r"\n(?:[ \t]*\n)+")
HUB_PREFIX = "hf:"
SPLIT_NAME = re.compile(r"(train|validation|valid|val|dev|test)\b", re.IGNORECASE)


def load_documents(source: str, *, text_key: str = "text", split_text_files: bool = True) -> list[str]:
    """Read all documents of a corpus.

    Args:
        source: one of
            `english`: the topics of Python's own reference (`pydoc_data.topics`), each a document; about 0.5 MB, on
                every machine;
            `python`: the source files of the standard library without its tests, each a document; about 13 MB;
            a `.txt` file: see `split_text_files`; a `.md`, `.rst` or `.py` file: one document;
            a `.jsonl`, `.json`, `.csv`, `.tsv` or `.parquet` file: one document per row, in the column `text_key`
            (rows of JSON may also be plain strings);
            a folder: all such files below it, in the order of their paths; or one that `datasets` wrote by
                `save_to_disk`;
            `hf:name`, `hf:name:config`, `hf:name:split`, `hf:name:config:split`: a data set of the Hugging Face hub, or
                a local folder that the package `datasets` reads; split is `train` unless named, slices are fine
                (`hf:name:train[:1%]`).
        text_key: column that holds the text.
        split_text_files: True: blank lines in a `.txt` file separate documents. False: the file is one document.
    Returns:
        The documents in fixed order; those without any visible character are left out.
    Raises:
        ConfigError: if the source is missing, empty, damaged, not UTF-8, or has no such column.
    """
    documents = _documents(source, text_key, split_text_files)
    visible = [document for document in documents if document.strip()]
    if not visible:
        raise ConfigError(
            f"corpus: corpus={source} holds no text; expected at least one document. Choose another corpus."
        )
    return visible


def require_corpus(source: str) -> None:
    """Refuse a local source whose first file cannot be read, in no time; see `load_documents`.

    Raises:
        ConfigError: if it is missing, damaged or in an unknown format.
    """
    if not source.startswith(HUB_PREFIX):
        next(_documents(source, "text", True), None)


def _documents(source: str, text_key: str, split_text_files: bool) -> Iterator[str]:
    if source in CORPORA:
        return CORPORA[source]()
    if source.startswith(HUB_PREFIX):
        return iter(_from_datasets(source, text_key))
    return _from_path(Path(source).expanduser(), text_key, split_text_files)


def split_documents(documents: Iterable[str], held_out_fraction: float, seed: int = 0) -> tuple[list[str], list[str]]:
    """Split by document: each goes where a hash of its text says.

    So the split of a document depends on nothing but its text and the seed: not on its place, nor on the rest of the
    corpus, and copies of a document never stand on both sides. If chance leaves a side empty, the nearest document
    moves there.

    Args:
        documents: texts.
        held_out_fraction: expected share of the distinct documents that are held out; 0 < fraction < 1.
        seed: another seed, another split.
    Returns:
        Training and held-out documents, each in the order of `documents`, none of them empty.
    Raises:
        ConfigError: if the fraction is out of range, or there are fewer than two distinct documents.
    """
    if not 0 < held_out_fraction < 1:
        raise ConfigError(
            f"corpus: held_out={held_out_fraction} is out of range; expected 0 < held_out < 1. Set it to 0.05, for "
            "example."
        )
    documents = list(documents)
    places = {document: place_of(document, seed) for document in documents}
    if len(places) < 2:
        raise ConfigError(
            f"corpus: documents={len(places)} after removing copies, too few to split; expected at least 2, one "
            "to train on and one to hold out. Add documents, let blank lines split text files, or name a second "
            "corpus in held_out."
        )
    by_place = sorted(places, key=places.__getitem__)
    # Never below the first place, so that one document is held out, and never above the last but one, so that one is
    # trained on.
    threshold = min(max(held_out_fraction, places[by_place[0]]), places[by_place[-2]])
    training = [document for document in documents if places[document] > threshold]
    held_out = [document for document in documents if places[document] <= threshold]
    return training, held_out


def cut_document(document: str, pieces: int = 20) -> list[str]:
    r"""Cut one long document at line ends into pieces of about equal length, so that some of them can be held out.

    Args:
        document: text.
        pieces: how many at most; fewer if it has fewer lines.
    Returns:
        Pieces whose concatenation is the document.
    Example:
        >>> cut_document("a\nb\nc\nd\n", pieces=2)
        ['a\nb\n', 'c\nd\n']
    """
    lines = document.splitlines(keepends=True)
    count = min(pieces, len(lines))
    edges = [round(i * len(lines) / count) for i in range(count + 1)]
    return ["".join(lines[start:stop]) for start, stop in itertools.pairwise(edges)]


def place_of(document: str, seed: int) -> float:
    """Return a number in [0, 1) that is uniform over texts."""
    text = document.encode("utf-8", "surrogatepass")
    digest = hashlib.blake2b(text, digest_size=8, salt=seed.to_bytes(8, "little", signed=True)).digest()
    return int.from_bytes(digest, "little") / 2**64


def _english() -> Iterator[str]:
    topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
    return (topics[name] for name in sorted(topics))


def _python() -> Iterator[str]:
    library = Path(sysconfig.get_path("stdlib"))
    left_out = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
    for path in sorted(library.rglob("*.py")):
        if left_out.isdisjoint(path.relative_to(library).parts):
            # Some files name an encoding of their own in their first lines.
            with tokenize.open(path) as file:
                yield file.read()


CORPORA: dict[str, Callable[[], Iterator[str]]] = {"english": _english, "python": _python}
"""Corpora that every machine with Python has, by name."""


def _from_path(path: Path, text_key: str, split_text_files: bool) -> Iterator[str]:
    if path.is_dir():
        if (path / "state.json").exists() or (path / "dataset_dict.json").exists():
            yield from _from_datasets(f"{HUB_PREFIX}{path}", text_key)
            return
        files = [file for file in sorted(path.rglob("*")) if file.is_file() and file.suffix.lower() in READERS]
        if not files:
            raise ConfigError(
                f"corpus: corpus={path} is a folder without readable files; expected files ending in "
                f"{', '.join(READERS)}. Choose another folder or convert the files."
            )
    elif path.exists():
        files = [path]
    else:
        siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        raise ConfigError(
            f"corpus: corpus={path} does not exist; expected a file, a folder, '{HUB_PREFIX}name', or one of "
            f"{', '.join(CORPORA)}. {did_you_mean(path.name, [*CORPORA, *siblings][:50], otherwise='Check the path.')}"
        )
    for file in files:
        reader = READERS.get(file.suffix.lower())
        if reader is None:
            raise ConfigError(
                f"corpus: corpus={file} has the unknown ending '{file.suffix}'; expected one of {', '.join(READERS)}. "
                "Rename the file after its format."
            )
        try:
            yield from (
                _split_text(_read_text(file)) if file.suffix == ".txt" and split_text_files else reader(file, text_key)
            )
        except OSError as error:
            raise ConfigError(
                f"corpus: corpus={file} cannot be read ({error.strerror or error}); expected a readable file. Check "
                "its permissions."
            ) from error


def _read_text(path: Path) -> str:
    try:
        # "utf-8-sig" drops the byte order mark that some editors write.
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"corpus: corpus={path} is no UTF-8 text at byte {error.start}; expected UTF-8. "
            "Convert the file, for example with: iconv -f latin1 -t utf-8"
        ) from None


def _split_text(text: str) -> Iterator[str]:
    return (document.strip("\n") for document in BLANK_LINES.split(text))


def _text_file(path: Path, text_key: str) -> Iterator[str]:
    yield _read_text(path)


def _json_lines_file(path: Path, text_key: str) -> Iterator[str]:
    for number, line in enumerate(_read_text(path).split("\n"), start=1):
        if line.strip():
            yield _text_of(_parse_json(line, path, number), text_key, f"{path}, line {number}")


def _json_file(path: Path, text_key: str) -> Iterator[str]:
    rows = _parse_json(_read_text(path), path, 1)
    if not isinstance(rows, list):
        raise ConfigError(
            f"corpus: corpus={path} holds a JSON {type(rows).__name__}; expected a list of texts or of objects. "
            "Put the rows into one list, or write one object per line and name the file .jsonl."
        )
    for number, row in enumerate(rows, start=1):
        yield _text_of(row, text_key, f"{path}, row {number}")


def _parse_json(text: str, path: Path, first_line: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(
            f"corpus: corpus={path} is no JSON at line {first_line + error.lineno - 1}, column {error.colno} "
            f"({error.msg}); expected valid JSON. Correct the line."
        ) from None


def _text_of(row: object, text_key: str, where: str) -> str:
    if isinstance(row, str):
        return row
    if not isinstance(row, dict):
        raise ConfigError(
            f"corpus: row={row!r:.40} ({where}) is no document; expected a text or an object with the key "
            f"'{text_key}'. Correct it."
        )
    if text_key not in row:
        raise _unknown_column(where, text_key, row)
    return _checked_text(row[text_key], text_key, where)


def _checked_text(value: object, text_key: str, where: str) -> str:
    if value is None:
        return ""  # an empty cell; load_documents leaves it out
    if not isinstance(value, str):
        raise ConfigError(
            f"corpus: text_key={text_key} holds a {type(value).__name__} ({where}); expected text. "
            "Name a column of text, or turn the rows into text first."
        )
    return value


def _unknown_column(where: str, text_key: str, columns: Iterable[object]) -> ConfigError:
    names = [str(column) for column in columns]
    return ConfigError(
        f"corpus: text_key={text_key} is no column ({where}); expected one of its columns. "
        f"{did_you_mean(text_key, names)}"
    )


def _comma_file(path: Path, text_key: str) -> Iterator[str]:
    return _table_file(path, text_key, ",")


def _tab_file(path: Path, text_key: str) -> Iterator[str]:
    return _table_file(path, text_key, "\t")


def _table_file(path: Path, text_key: str, delimiter: str) -> Iterator[str]:
    # The default limit of 128 KiB per cell is shorter than many documents; a C long is 32 bits wide on some systems.
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    _read_text(path)  # one clear sentence for a wrong encoding, before the reader meets it in the middle of the file
    with open(path, encoding="utf-8-sig", newline="") as file:
        rows = csv.DictReader(file, delimiter=delimiter)
        if rows.fieldnames is None:
            return  # an empty file
        if text_key not in rows.fieldnames:
            raise _unknown_column(str(path), text_key, rows.fieldnames)
        for row in rows:
            yield row[text_key] or ""


def _parquet_file(path: Path, text_key: str) -> Iterator[str]:
    import pyarrow
    from pyarrow import parquet

    try:
        columns = parquet.read_schema(path).names
        if text_key not in columns:
            raise _unknown_column(str(path), text_key, columns)
        values = parquet.read_table(path, columns=[text_key])[text_key]
    except pyarrow.ArrowInvalid as error:
        raise ConfigError(
            f"corpus: corpus={path} is no parquet file ({str(error).splitlines()[0]}); expected one. Copy or convert "
            "it again."
        ) from None
    for number, value in enumerate(values, start=1):
        yield _checked_text(value.as_py(), text_key, f"{path}, row {number}")


READERS: dict[str, Callable[[Path, str], Iterator[str]]] = {
    ".txt": _text_file,
    ".md": _text_file,
    ".rst": _text_file,
    ".py": _text_file,
    ".jsonl": _json_lines_file,
    ".json": _json_file,
    ".csv": _comma_file,
    ".tsv": _tab_file,
    ".parquet": _parquet_file,
}
"""How to read a file, by its ending."""


def _from_datasets(source: str, text_key: str) -> Iterator[str]:
    rows = load_hub_rows(source)
    if text_key not in rows.column_names:
        raise _unknown_column(source, text_key, rows.column_names)
    for number, value in enumerate(rows[text_key], start=1):
        yield _checked_text(value, text_key, f"{source}, row {number}")


def load_hub_rows(source: str, *, is_streamed: bool = False) -> Any:
    """Return a data set of the hub, or of a local folder, as the package `datasets` does.

    Args:
        source: ``hf:name[:config][:split]``.
        is_streamed: read rows as they are asked for, instead of bringing all of them here first.
    Raises:
        ConfigError: if it cannot be loaded.
    """
    import datasets

    name, configuration, split = _parse_hub_name(source)
    try:
        folder = Path(name).expanduser()
        if (folder / "state.json").exists():
            return datasets.load_from_disk(str(folder))
        if (folder / "dataset_dict.json").exists():
            return datasets.load_from_disk(str(folder))[split]
        if folder.is_dir():
            return datasets.load_dataset(str(folder), configuration, split=split, streaming=is_streamed)
        return _from_hub(name, configuration, split, is_streamed)
    except Exception as error:
        # The package raises a dozen classes of its own, and those of four libraries below it.
        raise ConfigError(
            f"corpus: corpus={source} cannot be loaded ({_first_line(error)}); expected a data set of the hub or a "
            f"local folder, as '{HUB_PREFIX}name[:config][:split]'. Check the name, the split and the network."
        ) from error


def _from_hub(name: str, configuration: str | None, split: str, is_streamed: bool) -> Any:
    import datasets

    try:
        require_hub(name, "dataset", "README.md")
    except ConnectionError as unreachable:
        # What was loaded before is in the package's cache, to which it turns at once if it knows that it is offline.
        was_offline, datasets.config.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE, True
        try:
            return datasets.load_dataset(name, configuration, split=split, streaming=is_streamed)
        except Exception:
            raise unreachable from None
        finally:
            datasets.config.HF_HUB_OFFLINE = was_offline
    return datasets.load_dataset(name, configuration, split=split, streaming=is_streamed)


def _parse_hub_name(source: str) -> tuple[str, str | None, str]:
    """Return name, configuration and split of "hf:name[:config][:split]"."""
    # Colons inside brackets belong to a slice of a split.
    name, *rest = re.split(r":(?![^\[]*\])", source.removeprefix(HUB_PREFIX))
    if len(rest) > 2 or not all([name, *rest]):
        raise ConfigError(
            f"corpus: corpus={source} is malformed; expected '{HUB_PREFIX}name[:config][:split]'. Correct the name."
        )
    if len(rest) == 1:
        return (name, None, rest[0]) if SPLIT_NAME.match(rest[0]) else (name, rest[0], "train")
    return (name, rest[0], rest[1]) if rest else (name, None, "train")


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
