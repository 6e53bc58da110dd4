"""Records of a large JSON array, one after the other: a table of millions never stands in memory as a whole."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from featherweight.errors import CheckpointError

_CHUNK_CHARACTERS = 1 << 20
_BLANK = " \t\r\n,"


def iterate_records(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of a file that holds one JSON array; memory: a chunk of 1 MiB of text and one record.

    Raises:
        CheckpointError: if the file is missing, is no array, or ends in the middle.
    """
    decoder = json.JSONDecoder()
    try:
        stream = path.open(encoding="utf-8")
    except OSError as error:
        raise CheckpointError(
            f"iterate_records: path='{path}' cannot be read ({error.strerror}); expected a table of the data set. "
            "Check that the download is complete and the version is right."
        ) from error
    with stream:
        buffer, place, has_opened, is_last = "", 0, False, False
        while True:
            while place < len(buffer) and buffer[place] in _BLANK:
                place += 1
            if place < len(buffer) and not has_opened:
                if buffer[place] != "[":
                    raise _damaged(path, "does not begin with '['")
                has_opened, place = True, place + 1
                continue
            if place < len(buffer) and buffer[place] == "]":
                return
            if place < len(buffer):
                try:
                    record, end = decoder.raw_decode(buffer, place)
                # What is cut off at the end of the chunk is whole after the next one.
                except json.JSONDecodeError:
                    if is_last:
                        raise _damaged(path, "ends in the middle or holds something else than records") from None
                else:
                    if not isinstance(record, dict):
                        raise _damaged(path, f"holds {type(record).__name__} where a record is expected")
                    yield record
                    place = end
                    continue
            elif is_last:
                raise _damaged(path, "ends without ']'")
            more = stream.read(_CHUNK_CHARACTERS)
            buffer, place, is_last = buffer[place:] + more, 0, not more


def _damaged(path: Path, what: str) -> CheckpointError:
    return CheckpointError(
        f"iterate_records: path='{path}' {what}; expected one JSON array of records. Download or unpack the file again."
    )
