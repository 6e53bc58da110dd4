"""Files and folders that appear complete or not at all, and the folder of what can be made again.

New content is written beside its place, flushed to the disk and renamed: a reader, a full disk, an interrupt or a lost
plug finds the old content or the new one, never a part. Whatever the package writes for a user goes through here.
"""

import contextlib
import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from featherweight.errors import ConfigError

TEMPORARY = ".tmp"
"""How the names of temporary files and folders end; they begin with a dot."""

# Windows cannot open a folder, and some file systems know no flush of one: a rename is as durable as they make it.
_NO_FOLDER_FLUSH = {errno.EACCES, errno.EPERM, errno.EISDIR, errno.EINVAL, errno.EBADF, errno.ENOTSUP, errno.ENOSYS}


def cache_folder() -> Path:
    """Return where the package keeps what it can make again: $FEATHERWEIGHT_CACHE, or ~/.cache/featherweight."""
    return Path(os.environ.get("FEATHERWEIGHT_CACHE") or "~/.cache/featherweight").expanduser()


def write_atomically(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Write a file so that readers see the old or the new content, never a part; missing folders are made.

    Args:
        path: the file to write or replace.
        content: text (written as UTF-8) or bytes.

    Raises:
        ConfigError: if the folder cannot be written or the disk is full. The old file is then untouched.
    """
    path = Path(path)
    try:
        with new_file(path) as temporary:
            temporary.write_bytes(content.encode() if isinstance(content, str) else content)
    except OSError as error:
        raise ConfigError(
            f"{path}: file={path.name} cannot be written ({error.strerror}); expected a writable folder with space. "
            "Choose another folder or free some space."
        ) from error


@contextlib.contextmanager
def new_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give the block a path to write a file to, which then takes the place of `path`; missing folders are made.

    A link stays, and the file that it names is replaced; a file that was there hands on its permissions. If the block
    raises, `path` stays as it was and nothing is left behind, no folder that was made for it either.

    Args:
        path: the file to write or replace.

    Yields:
        The temporary path, in the folder of the file.

    Raises:
        OSError: if the folder cannot be written or the disk is full.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with new_file(Path(folder, "a.txt")) as temporary:
        ...         _ = temporary.write_text("whole")
        ...     print([path.name for path in Path(folder).iterdir()])
        ['a.txt']
    """
    place, made = _place(path)
    temporary = _temporary(place)
    try:
        yield temporary
        if place.exists():
            shutil.copymode(place, temporary)
        flush(temporary)
        os.replace(temporary, place)
        flush(place.parent)
    finally:
        # Still there only if something went wrong, an interrupt included.
        if os.path.lexists(temporary):
            temporary.unlink()
        _remove_empty(made)


@contextlib.contextmanager
def new_folder(path: str | os.PathLike[str], *, replace: bool = False) -> Iterator[Path]:
    """Give the block an empty folder to fill, which then takes the place of `path`; missing parents are made.

    A link to a folder stays. If the block raises, `path` stays as it was and nothing is left behind.

    Args:
        path: the folder to make.
        replace: take the place of what is there, which is removed afterwards; otherwise of an empty folder only.

    Yields:
        The temporary folder, beside `path`.

    Raises:
        OSError: if the parent cannot be written, the disk is full, or, without `replace`, something is there.
    """
    place, made = _place(path)
    temporary = _temporary(place)
    old = temporary.with_name(f".old-{temporary.name[1:]}")
    try:
        temporary.mkdir()
        yield temporary
        for folder, _, names in os.walk(temporary, topdown=False):
            for name in names:
                flush(Path(folder, name))
            flush(Path(folder))
        if replace and os.path.lexists(place):
            place.rename(old)
        elif place.is_dir():
            # Windows renames over no folder, not even an empty one. A full one is refused here.
            place.rmdir()
        try:
            temporary.rename(place)
        except BaseException:
            if os.path.lexists(old):
                old.rename(place)
            raise
        flush(place.parent)
    finally:
        # Whatever stands at `place` now is complete, old or new.
        for leftover in (temporary, old):
            _remove(leftover)
        _remove_empty(made)


def flush(path: str | os.PathLike[str]) -> None:
    """Wait until a file, or the list of names of a folder, is on the disk, where the system can do that for it.

    Raises:
        OSError: if the disk reports an error.
    """
    is_folder = os.path.isdir(path)
    # Windows flushes only what is open for writing.
    access = os.O_RDWR if os.name == "nt" and not is_folder else os.O_RDONLY
    try:
        descriptor = os.open(path, access)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if not is_folder or error.errno not in _NO_FOLDER_FLUSH:
            raise


def remove_leftovers(folder: str | os.PathLike[str]) -> None:
    """Remove what killed writers left in a folder; only for a folder that has one writer at a time."""
    for leftover in Path(folder).glob(f".*{TEMPORARY}"):
        _remove(leftover)


def _place(path: str | os.PathLike[str]) -> tuple[Path, list[Path]]:
    """Return what a path names behind links, in a folder that exists from now on, and the folders made for it."""
    place = Path(os.path.realpath(path)) if os.path.islink(path) else Path(path)
    made = [folder for folder in place.parents if not folder.exists()]
    place.parent.mkdir(parents=True, exist_ok=True)
    return place, made


def _remove_empty(folders: list[Path]) -> None:
    """Remove folders that were made for something that never came, the innermost first; others are left."""
    with contextlib.suppress(OSError):
        for folder in folders:
            folder.rmdir()


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def _temporary(place: Path) -> Path:
    # Not the number of the process: threads write, too, and containers that share a disk repeat numbers.
    return place.with_name(f".{place.name}.{uuid.uuid4().hex[:12]}{TEMPORARY}")
