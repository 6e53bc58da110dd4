"""The folder of a run: a new name, and a claim that no other process can make at the same time."""

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from featherweight.config.lock import locked_folder
from featherweight.errors import CheckpointError, ConfigError
from featherweight.report.formatting import format_bytes


def new_run_folder(name: str) -> Path:
    """Return a path runs/<name>-<time> that does not exist yet."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    candidate, count = Path("runs") / f"{name}-{stamp}", 1
    while candidate.exists():
        count += 1
        candidate = Path("runs") / f"{name}-{stamp}-{count}"
    return candidate


def check_free(folder: Path) -> None:
    """Refuse to overwrite a run.

    Raises:
        ConfigError: if the folder holds one.
    """
    if (folder / "metrics.jsonl").exists():
        raise ConfigError(
            f"run: out={folder} already holds a run; expected a new or empty folder. Resume it, or choose another "
            "folder."
        )


def require_run(folder: Path) -> None:
    """Refuse to resume what is no run.

    Raises:
        CheckpointError: if the folder holds none.
    """
    if not (folder / "recipe.yaml").is_file():
        raise CheckpointError(
            f"run: out={folder} holds no run; expected the folder of the run to resume. Correct the path, or "
            "start without resume."
        )


def require_begun(folder: Path, command: str, noun: str) -> None:
    """Refuse to resume several runs where none have begun.

    Args:
        folder: of all of them.
        command: opens the message.
        noun: what the folder should be of: "sweep".
    Raises:
        CheckpointError: if there is no such folder.
    """
    if not folder.is_dir():
        raise CheckpointError(
            f"{command}: out={folder} holds no {noun}; expected the folder of the one to resume. Correct the path."
        )


def check_place(folder: Path) -> None:
    """Refuse, before anything is loaded, the place of a new run that is taken, in use, or cannot be made.

    Raises:
        ConfigError: as `claimed` does later, when the folder is held.
    """
    existing = next(one for one in (folder.absolute(), *folder.absolute().parents) if one.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise _cannot_be_written(folder, "not writable" if existing.is_dir() else f"{existing} is no folder")
    if folder.exists():
        with locked(folder):
            check_free(folder)


def _cannot_be_written(folder: Path, reason: str | None) -> ConfigError:
    return ConfigError(
        f"run: out={folder} cannot be written ({reason}); expected the path of a folder, there or to be made. Choose "
        "another one."
    )


def require_room(folder: Path, needed_bytes: int) -> None:
    """Refuse a run whose results the disk has no room for, before it begins.

    Args:
        folder: of the run.
        needed_bytes: what it will write at least.
    Raises:
        ConfigError: if less is free.
    """
    existing = next(parent for parent in [folder.absolute(), *folder.absolute().parents] if parent.exists())
    free_bytes = shutil.disk_usage(existing).free
    if needed_bytes > free_bytes:
        raise ConfigError(
            f"run: out={folder} needs at least {format_bytes(needed_bytes)} for the trained weights, and its disk has "
            f"{format_bytes(free_bytes)} free; expected room for them. Free some space, choose another disk, or write "
            "less: save_model=false checkpoint_at_end=false."
        )


@contextmanager
def claimed(folder: Path, resume: bool) -> Iterator[None]:
    """Hold a run folder against other processes, as `locked` does.

    It must hold a run to resume, or else none. A run that fails before it begins leaves nothing behind.
    """
    if resume:
        require_run(folder)
    is_new = not folder.exists()
    with locked(folder):
        if not resume:
            check_free(folder)
        try:
            yield
        except BaseException:
            if not resume and not (folder / "metrics.jsonl").exists():
                _forget(folder, is_new)
            raise


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder against other processes; the operating system lets go of it when this process ends.

    Raises:
        ConfigError: if it is in use, or cannot be made.
    """
    is_new = not folder.exists()
    with ExitStack() as held:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            held.enter_context(locked_folder(folder))
        except BlockingIOError:
            raise ConfigError(
                f"run: out={folder} is in use by another process; expected a folder of its own. Wait for that process, "
                "or choose another folder."
            ) from None
        except OSError as error:
            raise _cannot_be_written(folder, error.strerror) from error
        try:
            yield
        except BaseException:
            if is_new:
                with suppress(OSError):  # something is in it
                    folder.rmdir()
            raise


def _forget(folder: Path, is_new: bool) -> None:
    """Remove what a run has written that never began; whatever else is in the folder stays."""
    for name in ("recipe.yaml", "environment.json"):
        (folder / name).unlink(missing_ok=True)
    if is_new:
        with suppress(OSError):
            folder.rmdir()
