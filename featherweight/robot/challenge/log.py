"""The judge's log: one JSON object a line, each with the SHA-256 of itself and of the one before, so no line can be
changed, left out or put in without being noticed.
"""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from featherweight.config import write_atomically
from featherweight.errors import ConfigError

Record = dict[str, Any]
VERSION = 1


def chain(records: Iterable[Record]) -> list[Record]:
    """Return records with their hashes."""
    chained, before = [], ""
    for record in records:
        before = _digest(record, before)
        chained.append({**record, "hash": before})
    return chained


def write_log(path: str | Path, records: Iterable[Record]) -> None:
    """Write a log whole or not at all."""
    write_atomically(path, "".join(json.dumps(record, separators=(",", ":")) + "\n" for record in chain(records)))


def read_log(path: str | Path) -> list[Record]:
    """Return the records of a log, without hashes.

    Raises:
        ConfigError: if it is missing, is no log, or a line was changed.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"challenge: log={path} cannot be read ({error}); expected the log of a run. Correct the path."
        ) from error
    records, before = [], ""
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            told = record.pop("hash")
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise ConfigError(
                f"challenge: line={number} of {path} is no record; expected JSON with a hash. Take the log as "
                "it was written."
            ) from error
        before = _digest(record, before)
        if told != before:
            raise ConfigError(
                f"challenge: line={number} of {path} was changed after the run; expected hash {before[:12]}. Take the "
                "log as it was written."
            )
        records.append(record)
    if not records or records[0].get("kind") != "start" or records[-1].get("kind") != "end":
        raise ConfigError(
            f"challenge: log={path} has no start or no end; expected a whole run. Take the log as it was written."
        )
    return records


def _digest(record: Record, before: str) -> str:
    text = json.dumps(record, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256((before + text).encode()).hexdigest()
