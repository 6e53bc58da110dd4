"""A folder held against other processes; the operating system lets go of it when the process ends, however it ends."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

LOCK_FILE = ".lock"
"""Where Windows keeps the lock: it cannot open a folder."""


@contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Hold a folder while the block runs.

    On systems and network drives without locks the block runs all the same: two writers in one folder then remain the
    user's care.

    Args:
        folder: is there.
    Raises:
        BlockingIOError: if another process holds it.
        OSError: if the folder cannot be opened.
    """
    try:
        import fcntl
    except ImportError:
        with _locked_file(folder / LOCK_FILE):
            yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise
        except OSError:
            pass
        yield
    finally:
        os.close(descriptor)


@contextmanager
def _locked_file(path: Path) -> Iterator[None]:
    """Hold a file of one byte, which is removed afterwards; without `msvcrt` nothing is held."""
    try:
        import msvcrt
    except ImportError:
        yield
        return
    with open(path, "ab+") as file:
        file.seek(0)
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined, unused-ignore]
        except OSError as error:
            raise BlockingIOError(*error.args) from None
        try:
            yield
        finally:
            file.close()
            with suppress(OSError):
                path.unlink()
