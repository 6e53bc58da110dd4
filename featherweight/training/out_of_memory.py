"""Memory that runs out, in one sentence whatever form it takes, and no restart that would only repeat it."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from featherweight.config import write_atomically
from featherweight.distributed.group import rank, world_size
from featherweight.errors import OutOfMemoryError
from featherweight.training.checkpoint import Checkpoints
from featherweight.training.recipe import Recipe

_NOTE = "out_of_memory.json"
_HOPELESS = 2
"""Times that memory runs out from one checkpoint on, after which a launcher's restarts are in vain."""


@contextmanager
def explain_out_of_memory(recipe: Recipe, folder: Path | None = None) -> Iterator[None]:
    """Turn the many forms in which memory runs out inside the block into one sentence.

    Args:
        recipe: of the run.
        folder: of the run, where a process that a launcher would start again notes what has happened.
    Raises:
        OutOfMemoryError: if memory ran out.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        # On the CPU torch raises a bare RuntimeError.
        is_memory = isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
        if not is_memory:
            raise
        place = f"rank {rank()} of {world_size()}: " if world_size() > 1 else ""
        restarts = " A restart will not get better." if place else ""
        if folder is not None and _launch() is not None:
            _take_note(folder)
        raise OutOfMemoryError(
            f"training: {place}micro_batch_size={recipe.micro_batch_size} with optimizer={recipe.optimizer['name']} "
            f"and precision={recipe.precision} needs more memory than there is; expected a run that fits. Lower "
            "micro_batch_size and raise accumulation_steps instead, set activation_checkpointing: true, or choose "
            f"galore_8bit.{restarts}"
        ) from error


def refuse_hopeless(folder: Path) -> None:
    """Refuse a restart by a launcher whose run has run out of memory twice from the same checkpoint on.

    A launch of its own begins anew: its user may have changed something.

    Args:
        folder: of the run.
    Raises:
        OutOfMemoryError: if it will not get better.
    """
    if os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0":
        (folder / _NOTE).unlink(missing_ok=True)
        return
    note = _note_of(folder)
    if note["times"] >= _HOPELESS:
        where = f"checkpoint {note['checkpoint']}" if note["checkpoint"] else "the start"
        raise OutOfMemoryError(
            f"training: memory ran out {note['times']} times between {where} and the next one; expected a run that "
            "fits, and a restart will not get better. Lower micro_batch_size and raise accumulation_steps instead, "
            "set activation_checkpointing: true, or choose galore_8bit, and start anew with --resume."
        )


def _launch() -> str | None:
    """Return the launch whose processes are started again when one fails."""
    return os.environ.get("TORCHELASTIC_RUN_ID")


def _note_of(folder: Path) -> dict[str, Any]:
    """Return how often memory has run out in this launch from the newest checkpoint on."""
    latest = Checkpoints(folder / "checkpoints", keep=None).latest()
    fresh = {"launch": _launch(), "checkpoint": None if latest is None else latest.folder.name, "times": 0}
    with suppress(OSError, ValueError, TypeError):
        known = json.loads((folder / _NOTE).read_text(encoding="utf-8"))
        if {**known, "times": 0} == fresh:
            return {**fresh, "times": int(known["times"])}
    return fresh


def _take_note(folder: Path) -> None:
    note = _note_of(folder)
    with suppress(OSError):  # what has happened matters more than the note
        write_atomically(folder / _NOTE, json.dumps({**note, "times": note["times"] + 1}))
