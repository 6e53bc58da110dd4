"""Checkpoints that are complete or absent, whatever happens while they are written.

A checkpoint is a folder `step-<number>` with the weights (safetensors), everything else that a bitwise resume needs
(`training_state.pt`, plain tensors and numbers), and a manifest with the size of each file. It is written under a
temporary name, flushed to the disk and then renamed: a process that dies half-way leaves only a temporary folder,
which the next writer removes.
"""

import json
import pickle
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_model, save_model
from torch import nn

from featherweight.config.files import new_folder, remove_leftovers
from featherweight.errors import CheckpointError

FORMAT_VERSION = 1
"""Written into each manifest; grows when the content changes so that older code cannot read it."""

WEIGHTS, STATE, MANIFEST = "model.safetensors", "training_state.pt", "manifest.json"


@dataclass(frozen=True)
class Checkpoint:
    """One complete checkpoint on the disk."""

    folder: Path
    step: int
    """Optimizer steps that were done."""
    recipe: Mapping[str, Any]
    """The recipe of the run, as a plain mapping."""

    def load(self, model: nn.Module) -> dict[str, Any]:
        """Copy the weights into `model` and return the rest of the state, its tensors on the CPU.

        Raises:
            CheckpointError: if a file is damaged or belongs to another model.
        """
        try:
            load_model(model, self.folder / WEIGHTS)
            state = torch.load(self.folder / STATE, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, SafetensorError, pickle.UnpicklingError, EOFError) as error:
            raise CheckpointError(
                f"checkpoint: folder={self.folder} cannot be loaded ({_reason(error)}); expected the files of "
                "this recipe's model. "
                "Delete the folder to resume from the checkpoint before it."
            ) from error
        return dict(state)


class Checkpoints:
    """The checkpoints of one run, oldest first on the disk, of which the last few are kept.

    One process writes at a time.

    Args:
        folder: holds the checkpoints; made when the first one is written.
        keep: how many complete checkpoints stay; an older one goes only after a newer one is complete. None: all.
    """

    def __init__(self, folder: Path, *, keep: int | None = 2) -> None:
        self.folder, self.keep = Path(folder), keep

    def save(self, step: int, model: nn.Module, state: Mapping[str, Any], recipe: Mapping[str, Any]) -> Path:
        """Write the checkpoint of one step and remove those that are no longer kept.

        Args:
            step: optimizer steps that are done.
            model: its parameters and buffers are written once each, tied ones included.
            state: everything else: tensors, numbers, text and plain containers of them.
            recipe: the run's recipe as a plain mapping.

        Returns:
            The folder of the checkpoint.

        Raises:
            CheckpointError: if it cannot be written; the earlier checkpoints are untouched.
        """
        final = self._folder(step)
        try:
            remove_leftovers(self.folder)
            # One of the same step is damaged, or an equal one of the run before a resume.
            with new_folder(final, replace=True) as temporary:
                save_model(model, str(temporary / WEIGHTS))
                # An open file and not a path, because torch keeps the operating system's reason only for the former.
                with open(temporary / STATE, "wb") as file:
                    torch.save(dict(state), file)
                sizes = {name: (temporary / name).stat().st_size for name in (WEIGHTS, STATE)}
                manifest = {"format_version": FORMAT_VERSION, "step": step, "files": sizes, "recipe": dict(recipe)}
                (temporary / MANIFEST).write_text(json.dumps(manifest, indent=2), encoding="utf-8")
        except (OSError, RuntimeError, SafetensorError) as error:
            raise self._write_error(final, error) from error
        if self.keep is not None:
            for old in self._folders()[: -self.keep]:
                shutil.rmtree(old, ignore_errors=True)
        return final

    def latest(self) -> Checkpoint | None:
        """Return the newest complete checkpoint, or None; warns about each damaged one that it passes over.

        Raises:
            CheckpointError: if the newest one was written by a newer version of this package.
        """
        for folder in reversed(self._folders()):
            try:
                return _read(folder)
            except (OSError, ValueError, KeyError, TypeError) as error:
                warnings.warn(
                    f"checkpoint: folder={folder} is damaged ({_reason(error)}) and is passed over for the one "
                    "before it.",
                    stacklevel=2,
                )
        return None

    def steps(self) -> list[int]:
        """Return the steps of which a checkpoint stands here, damaged ones included, in order."""
        return [int(folder.name.removeprefix("step-")) for folder in self._folders()]

    def at(self, step: int) -> Checkpoint:
        """Return the checkpoint of a step.

        Raises:
            CheckpointError: if it is missing or damaged.
        """
        folder = self._folder(step)
        try:
            return _read(folder)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"checkpoint: folder={folder} is damaged ({_reason(error)}); expected a complete one. Delete it."
            ) from error

    def forget(self, step: int) -> None:
        """Remove the checkpoint of a step, if there is one."""
        shutil.rmtree(self._folder(step), ignore_errors=True)

    def _folder(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"

    def _folders(self) -> list[Path]:
        return sorted(path for path in self.folder.glob("step-*") if path.is_dir())

    def _write_error(self, final: Path, error: Exception) -> CheckpointError:
        kept = self._folders()
        previous = f"The checkpoint before it, {kept[-1]}, is complete." if kept else "No checkpoint stands before it."
        return CheckpointError(
            f"checkpoint: folder={final} cannot be written ({_reason(error)}); expected a writable folder with "
            "free space. "
            f"{previous} Free some space or choose another folder, then resume."
        )


def _read(folder: Path) -> Checkpoint:
    """Read and verify a manifest; a ValueError says what is wrong with the files."""
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    if manifest["format_version"] > FORMAT_VERSION:
        raise CheckpointError(
            f"checkpoint: format_version={manifest['format_version']} of {folder} is newer than this program; "
            f"expected at most {FORMAT_VERSION}. Update featherweight."
        )
    for name, size in manifest["files"].items():
        found = (folder / name).stat().st_size
        if found != size:
            raise ValueError(f"{name} has {found} bytes instead of {size}")
    return Checkpoint(folder, manifest["step"], manifest["recipe"])


def _reason(error: BaseException) -> str:
    """Return what went wrong in one line: the operating system's reason where one stands behind the library's."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OSError):
        cause = cause.__context__
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror
    return str(error).partition("\n")[0]
