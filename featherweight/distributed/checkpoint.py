"""Checkpoints of models and optimizers that any number of processes can read: `torch.distributed.checkpoint` (DCP).

Every process writes the rows that it holds; what all hold alike is written once. A folder appears complete or not at
all (on one shared file system).

manifest.json   format, number of processes, kind and options of the optimizer   (JSON)
*.distcp        tensors by full name: model.<name>, optimizer.<name>.<state>      (DCP)
"""

import json
import os
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.api import CheckpointException
from torch.optim import Optimizer

from featherweight.distributed.world import World, common
from featherweight.errors import CheckpointError, ConfigError
from featherweight.optim.low_rank import LowRankOptimizer
from featherweight.optim.sharding import shard_of
from featherweight.optim.state_dict import check_identity
from featherweight.unwrap import unwrap_model, unwrap_optimizer

FORMAT_VERSION = 2
MANIFEST = "manifest.json"


def save(folder: str | os.PathLike[str], model: nn.Module, optimizer: Optimizer | None = None) -> Path:
    """Write weights and optimizer state of all processes; a collective, between two steps.

    Args:
        folder: of the checkpoint; one that is there is replaced once the new one is complete.
        model: as in training, sharded or not.
        optimizer: one of `fw.optim`; None to leave it out.
    Returns:
        The folder.
    Raises:
        CheckpointError: if it cannot be written.
        ConfigError: for another kind of optimizer, or a layer-wise one in the middle of a step.
    Cost: the bytes of weights and state, spread over the processes.
    """
    world, final = World(), Path(folder)
    partial = final.with_name(f"{final.name}.partial")
    inner = None if optimizer is None else _low_rank(optimizer)
    manifest = {"format_version": FORMAT_VERSION, "world_size": world.size, **_options(inner)}
    with _explained(final, "written", "a writable folder with free space that all processes share. Free some space"):
        world.on_first(lambda: _begin(partial))
        with world.together():
            if not partial.is_dir():
                raise CheckpointError(
                    f"distributed: folder={final} cannot be written, as rank {world.rank} does not see what rank 0 has "
                    "begun there; expected one file system that all processes share. Put the folder on a shared one."
                )
        with _quiet():
            dcp.save(_tensors(model, inner), checkpoint_id=str(partial), no_dist=world.size == 1)
        world.on_first(lambda: _complete(partial, final, manifest))
    return final


def load(folder: str | os.PathLike[str], model: nn.Module, optimizer: Optimizer | None = None) -> None:
    """Read what `save` has written, in any number of processes, into a model and an optimizer; a collective.

    Args:
        folder: of the checkpoint.
        model: of the same parameters, sharded or not; written in place.
        optimizer: of the same kind and options; its groups take over lr, betas and other options of the checkpoint.
    Raises:
        CheckpointError: if it is incomplete or damaged, or belongs to another model or optimizer.
    """
    world, place = World(), Path(folder)
    inner = None if optimizer is None else _low_rank(optimizer)
    with world.together():
        manifest = _read_manifest(place)
        stored = set(FileSystemReader(str(place)).read_metadata().state_dict_metadata)
    with _explained(place, "loaded", "the checkpoint of this model and optimizer. Choose another one"):
        wanted = _model_tensors(model)
        _require_names(place, "model", set(wanted), {key for key in stored if key.startswith("model.")})
        options = [] if inner is None else _stored_groups(inner, manifest)
        if inner is not None:
            wanted |= _empty_states(place, inner, stored)
        with _quiet():
            dcp.load(wanted, checkpoint_id=str(place), no_dist=world.size == 1)
        if inner is not None:
            _take_over(inner, wanted, options)


# ---- what is in a checkpoint


def _tensors(model: nn.Module, optimizer: LowRankOptimizer | None) -> dict[str, Any]:
    return {**_model_tensors(model), **({} if optimizer is None else _optimizer_tensors(optimizer))}


def _model_tensors(model: nn.Module) -> dict[str, Any]:
    state = unwrap_model(model).state_dict()
    return {f"model.{name}": tensor for name, tensor in state.items() if isinstance(tensor, Tensor)}


def _names(optimizer: LowRankOptimizer) -> list[str]:
    """Return the name of each parameter, in the order of the groups."""
    return [layout.name for layout in optimizer.layouts.values()]


def _optimizer_tensors(optimizer: LowRankOptimizer) -> dict[str, Any]:
    state, names = optimizer.state_dict()["state"], _names(optimizer)
    return {
        f"optimizer.{names[number]}.{key}": value for number, found in state.items() for key, value in found.items()
    }


def _options(optimizer: LowRankOptimizer | None) -> dict[str, Any]:
    """Return kind and options of an optimizer as values that JSON holds."""
    if optimizer is None:
        return {}
    hidden = ("params", "param_names")
    groups = [{key: value for key, value in group.items() if key not in hidden} for group in optimizer.param_groups]
    return {"optimizer": type(optimizer).__name__, "groups": json.loads(json.dumps(groups, default=float))}


def _empty_states(place: Path, optimizer: LowRankOptimizer, stored: set[str]) -> dict[str, Any]:
    """Return tensors for all states of a checkpoint, to be read into: those that the parameters would create."""
    metadata = FileSystemReader(str(place)).read_metadata().state_dict_metadata
    empty: dict[str, Any] = {}
    for parameter, layout in optimizer.layouts.items():
        prefix = f"optimizer.{layout.name}."
        # Sorted: whoever gathers the states of all processes one by one must meet them in one order.
        keys = sorted(key.removeprefix(prefix) for key in stored if key.startswith(prefix))
        if not keys:
            continue  # it has made no step
        created: dict[str, Tensor] = {}
        layout.create_state(created, parameter.device)
        shard = shard_of(parameter)
        if shard is not None:
            created = shard.distributed_state(created, layout.spread)
        for key in keys:
            found: Any = metadata[prefix + key]
            if key not in created or (shard is None and created[key].shape != found.size):
                created[key] = torch.empty(found.size, dtype=found.properties.dtype)
            if created[key].shape != found.size or created[key].dtype != found.properties.dtype:
                raise CheckpointError(
                    f"distributed.load: '{layout.name}' has {key}={tuple(found.size)} {found.properties.dtype} in "
                    f"{place}; expected {tuple(created[key].shape)} {created[key].dtype}. Use the rank, proj_type and "
                    "bits of the run that wrote it."
                )
            empty[prefix + key] = created[key]
    return empty


def _stored_groups(optimizer: LowRankOptimizer, manifest: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the groups of an optimizer with the options of a checkpoint, if the two fit together.

    Raises:
        CheckpointError: names what differs, before anything was read.
    """
    own, stored = optimizer.param_groups, manifest.get("groups", [])
    if len(stored) != len(own):
        raise CheckpointError(
            f"distributed.load: groups={len(stored)} in the checkpoint; expected {len(own)}, those of this "
            f"{type(optimizer).__name__}. Build the same groups."
        )
    options = [
        {key: tuple(value) if isinstance(value, list) else value for key, value in one.items()} for one in stored
    ]
    groups = [{**mine, **theirs} for mine, theirs in zip(own, options, strict=True)]
    check_identity(optimizer, None, groups, own)
    return options


def _take_over(optimizer: LowRankOptimizer, read: dict[str, Any], options: list[dict[str, Any]]) -> None:
    """Hand what was read to the optimizer, with the options of the checkpoint."""
    packed = optimizer.state_dict()
    for group, stored in zip(packed["param_groups"], options, strict=True):
        group |= stored
    packed["state"] = {}
    for number, name in enumerate(_names(optimizer)):
        prefix = f"optimizer.{name}."
        found = {key.removeprefix(prefix): value for key, value in read.items() if key.startswith(prefix)}
        if found:
            packed["state"][number] = found
    optimizer.load_state_dict(packed)


def _require_names(place: Path, what: str, wanted: set[str], stored: set[str]) -> None:
    if wanted != stored:
        name = sorted(wanted ^ stored)[0]
        side = "lacks" if name in wanted else "has"
        raise CheckpointError(
            f"distributed.load: folder={place} {side} '{name.removeprefix('model.')}'; expected the {what} that was "
            "saved. Build the same one, methods included."
        )


def _low_rank(optimizer: Optimizer) -> LowRankOptimizer:
    inner = unwrap_optimizer(optimizer)
    if not isinstance(inner, LowRankOptimizer):
        raise ConfigError(
            f"distributed.save: optimizer={type(inner).__name__} is none of fw.optim; expected one of them. Save "
            "others with torch.distributed.checkpoint.state_dict."
        )
    if next(iter(inner.held_gradients()), None) is not None:
        raise ConfigError(
            "distributed.save: optimizer is in the middle of a layer-wise step, and sums of gradients are not saved; "
            "expected a complete step. Save after the last micro-batch."
        )
    return inner


# ---- the folder


def _begin(partial: Path) -> None:
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)


def _complete(partial: Path, final: Path, manifest: dict[str, Any]) -> None:
    """Write the manifest last, and give the folder its name."""
    with open(partial / MANIFEST, "w", encoding="utf-8") as file:
        json.dump(manifest, file, indent=2)
        file.flush()
        os.fsync(file.fileno())
    if final.exists():
        old = final.with_name(f"{final.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        final.rename(old)
        partial.rename(final)
        shutil.rmtree(old, ignore_errors=True)
    else:
        partial.rename(final)


def _read_manifest(place: Path) -> dict[str, Any]:
    try:
        manifest: dict[str, Any] = json.loads((place / MANIFEST).read_text(encoding="utf-8"))
        version = manifest["format_version"]
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"distributed.load: folder={place} holds no complete checkpoint ({error}); expected {MANIFEST} in it. "
            "Choose the folder that fw.distributed.save returned."
        ) from error
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"distributed.load: format_version={version} of {place} is not known; expected {FORMAT_VERSION}. Update "
            "featherweight, or read a checkpoint of fw train by --resume."
        )
    return manifest


@contextmanager
def _explained(place: Path, verb: str, expected: str) -> Iterator[None]:
    try:
        yield
    except (OSError, CheckpointException) as error:
        reason = getattr(error, "strerror", None) or str(error).strip().partition("\n")[0]
        raise common(
            CheckpointError(
                f"distributed: folder={place} cannot be {verb} ({reason}); expected {expected}, or choose another."
            )
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out torch's remarks about its own interfaces."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
