"""What a model said of labelled prompts, as files: so a guard is fitted again, in seconds and without the model.

A folder holds `rows.jsonl` (prompts with class, part, category, the forced tokens and the probe) and
`evidence.safetensors`. Several folders can be joined, for example one for each class, but only of one model and with
one prefix: classes that were probed with different prefixes could be told apart by the prefix alone.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from featherweight.config.files import new_folder
from featherweight.errors import CheckpointError, ConfigError
from featherweight.guard.evidence import TENSORS as PARTS
from featherweight.guard.evidence import Evidence, join_evidence
from featherweight.guard.options import GuardOptions
from featherweight.guard.prefix_search import Candidate
from featherweight.guard.reading import Collected
from featherweight.guard.splits import Rows

ROWS, TENSORS, SETTINGS = "rows.jsonl", "evidence.safetensors", "readings.json"


@dataclass(frozen=True)
class Readings:
    """All that a fit needs."""

    options: GuardOptions
    """Prefix, layers and lengths; its stages are not used."""
    rows: Rows
    collected: Collected
    fingerprints: Mapping[str, Any]
    """Of the model that was read."""
    prompt_tokens: int
    """Of a prompt, on average."""
    candidates: Sequence[Candidate] = ()
    """Prefixes that were tried."""
    dropped: int = 0
    """Prompts that stood there twice."""


def write_readings(folder: Path, readings: Readings) -> None:
    """Write a folder that appears complete or not at all.

    The prompts stand in it, as the reference "prompt words alone" needs them.

    Raises:
        ConfigError: if something else is there, or it cannot be written.
    """
    from safetensors.torch import save

    is_ours = (folder / SETTINGS).exists()
    if folder.exists() and not is_ours and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(
            f"guard: readings={folder} is there and holds none; expected a new folder. Choose another name."
        )
    rows, found, options = readings.rows, readings.collected, readings.options
    tensors = {name: value.contiguous() for name in PARTS if isinstance(value := getattr(found.evidence, name), Tensor)}
    for place, evidence in found.snapshots.items():
        if evidence.probe_hidden is not None:
            tensors[f"probe_hidden.{place}"] = evidence.probe_hidden.contiguous()
    data = save(tensors)
    lines = []
    for row, message in enumerate(rows.messages):
        entry = {
            "key": rows.keys[row],
            "kind": rows.kinds[row],
            "part": rows.parts[row],
            "category": rows.categories[row],
            "forced_ids": list(options.forced_ids),
            "probe_ids": found.evidence.probe_ids[row],
            "probe_ended": found.evidence.probe_ended[row],
            "messages": message,
        }
        lines.append(json.dumps(entry, ensure_ascii=False))
    settings = {
        "options": options.to_dict(),
        "fingerprints": dict(readings.fingerprints),
        "prompt_tokens": readings.prompt_tokens,
        "candidates": [vars(one) for one in readings.candidates],
        "dropped": readings.dropped,
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    try:
        with new_folder(folder, replace=is_ours) as temporary:
            (temporary / TENSORS).write_bytes(data)
            (temporary / ROWS).write_text("\n".join(lines) + "\n", encoding="utf-8")
            (temporary / SETTINGS).write_text(
                json.dumps(settings, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
            )
    except OSError as error:
        raise ConfigError(
            f"guard: readings={folder} cannot be written ({error.strerror}); expected a writable folder. Take another."
        ) from error


def read_readings(folders: Sequence[Path]) -> Readings:
    """Read folders, and join them.

    Raises:
        CheckpointError: if a file is missing or damaged.
        ConfigError: if classes or folders were probed with different prefixes, or are of different models.
    """
    found = [_read(folder) for folder in folders]
    if not found:
        raise ConfigError("guard: readings=[] are none; expected a folder that fw guard calibrate kept. Name one.")
    first, *others = found
    for other, folder in zip(others, folders[1:], strict=True):
        _require_same(first, other, folder)
    if not others:
        return first
    rows = Rows()
    for one in found:
        for index, message in enumerate(one.rows.messages):
            rows.add(message, *(getattr(one.rows, name)[index] for name in ("keys", "kinds", "parts", "categories")))
    # A place is kept only where every folder has it.
    places = set.intersection(*(set(one.collected.snapshots) for one in found))
    snapshots = {place: join_evidence([one.collected.snapshots[place] for one in found]) for place in sorted(places)}
    evidence = join_evidence([one.collected.evidence for one in found])
    tokens = sum(one.prompt_tokens * len(one.rows.keys) for one in found) // len(rows.keys)
    dropped = sum(one.dropped for one in found)
    return Readings(first.options, rows, Collected(evidence, snapshots), first.fingerprints, tokens, (), dropped)


def require_one_prefix(forced: Mapping[str, set[tuple[int, ...]]], where: str) -> None:
    """Refuse probes with different prefixes.

    Args:
        forced: class -> the forced tokens of its rows.
        where: they stand.

    Raises:
        ConfigError: naming the classes.
    """
    every = set().union(*forced.values())
    if len(every) > 1:
        shown = "; ".join(f"{kind}: {sorted(ids)}" for kind, ids in sorted(forced.items()))
        raise ConfigError(
            f"guard: probes of {where} begin with different prefixes ({shown:.160}); expected the same forced tokens "
            "for every class, as the prefix alone would tell them apart. Probe all of them again with one prefix."
        )


def _require_same(first: Readings, other: Readings, folder: Path) -> None:
    require_one_prefix(
        {"the first folder": {first.options.forced_ids}, folder.name: {other.options.forced_ids}}, str(folder)
    )
    for name in ("layers", "prefix_states", "probe_tokens", "policy_openings", "other_openings"):
        if getattr(first.options, name) != getattr(other.options, name):
            raise ConfigError(
                f"guard: {name}={getattr(other.options, name)} of {folder} differ from "
                f"{getattr(first.options, name)} of the first folder; expected the same. Read them again alike."
            )
    different = [name for name in first.fingerprints if first.fingerprints[name] != other.fingerprints.get(name)]
    if different:
        raise ConfigError(
            f"guard: {different[0]} of the model of {folder} differs from that of the first folder; expected readings "
            "of one model. Read them again with one."
        )


def _read(folder: Path) -> Readings:
    from safetensors.torch import load

    if not (folder / SETTINGS).is_file():
        raise CheckpointError(
            f"guard: folder={folder} holds no {SETTINGS}; expected what fw guard calibrate --keep-readings wrote. "
            "Check the path."
        )
    try:
        stored = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
        data = (folder / TENSORS).read_bytes()
        if hashlib.sha256(data).hexdigest() != stored["sha256"]:
            raise ValueError(f"{TENSORS} is not the file that was written")
        tensors = load(data)
        options = GuardOptions.parse(stored["options"], where=str(folder / SETTINGS))
        rows, ids, ended = Rows(), [], []
        forced: dict[str, set[tuple[int, ...]]] = {}
        for line in (folder / ROWS).read_text(encoding="utf-8").splitlines():
            one = json.loads(line)
            rows.add(one["messages"], one["key"], one["kind"], one["part"], one["category"])
            ids.append(list(one["probe_ids"]))
            ended.append(bool(one["probe_ended"]))
            forced.setdefault(one["kind"], set()).add(tuple(one["forced_ids"]))
        if any(len(value) != len(ids) for value in tensors.values()):
            raise ValueError(f"{ROWS} holds {len(ids)} rows, {TENSORS} others")
        candidates = [Candidate(**{**one, "ids": tuple(one["ids"])}) for one in stored["candidates"]]
    except (OSError, ValueError, KeyError, TypeError, ConfigError) as error:
        raise CheckpointError(
            f"guard: folder={folder} is damaged ({error}); expected the files that fw guard calibrate wrote. Read the "
            "prompts again."
        ) from error
    require_one_prefix(forced, str(folder))
    parts: dict[str, Any] = {name: tensors.get(name) for name in PARTS}
    evidence = Evidence(**parts, probe_ids=ids, probe_ended=ended)
    snapshots = {}
    for name, value in tensors.items():
        if "." in name:
            place = int(name.split(".")[1])
            cut = [one[:place] for one in ids]
            over = [done and len(one) < place for one, done in zip(ids, ended, strict=True)]
            known: dict[str, Any] = {"prefix_hidden": evidence.prefix_hidden, "probe_hidden": value}
            snapshots[place] = Evidence(**known, probe_ids=cut, probe_ended=over)
    return Readings(
        options,
        rows,
        Collected(evidence, dict(sorted(snapshots.items()))),
        stored["fingerprints"],
        int(stored["prompt_tokens"]),
        candidates,
        int(stored["dropped"]),
    )
