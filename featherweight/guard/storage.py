"""The folder of a guard: settings and fingerprints in JSON, weights in safetensors, the report of its calibration."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from featherweight.config.files import new_folder
from featherweight.errors import CheckpointError, ConfigError
from featherweight.guard.finetuned import FineTuned
from featherweight.guard.linear import Linear
from featherweight.guard.markdown import markdown_report
from featherweight.guard.monitor import NAME
from featherweight.guard.options import GuardOptions
from featherweight.guard.scoring import TextFunction
from featherweight.report import Report

SETTINGS, WEIGHTS, REPORT, PAGE, TEXT = (
    "guard_config.json",
    "classifier.safetensors",
    "report.json",
    "report.html",
    "report.md",
)
CLASSIFIER = "text_classifier"
"""Sub-folder of a classifier that was trained as a whole."""
_PARTS = ("mean", "std", "weight", "bias")


@dataclass(frozen=True)
class GuardFiles:
    """What the folder holds."""

    options: GuardOptions
    scores: Mapping[str, Linear]
    vocabulary: Tensor | None
    fingerprints: Mapping[str, Any] | None
    report: Report | None
    classifier: TextFunction | None = None
    """Of texts, where it was trained, or was given; only the former is written."""


def write_guard(folder: Path, files: GuardFiles) -> None:
    """Write a folder that appears complete or not at all; an older guard is replaced, anything else is not.

    Raises:
        ConfigError: if it cannot be written, or something else is there.
    """
    from safetensors.torch import save

    is_guard = (folder / SETTINGS).exists()
    if folder.exists() and not is_guard and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"guard: out={folder} is there and no guard; expected a new folder. Choose another name.")
    tensors = {
        f"{tier}.{part}": getattr(score, part).contiguous() for tier, score in files.scores.items() for part in _PARTS
    }
    if files.vocabulary is not None:
        tensors["vocabulary"] = files.vocabulary.contiguous()
    weights = save(tensors)
    settings: dict[str, Any] = {
        "options": files.options.to_dict(),
        "fingerprints": files.fingerprints,
        "sha256": hashlib.sha256(weights).hexdigest(),
    }
    try:
        with new_folder(folder, replace=is_guard) as temporary:
            (temporary / WEIGHTS).write_bytes(weights)
            if isinstance(files.classifier, FineTuned):
                files.classifier.save(temporary / CLASSIFIER)
                settings["classifier_sha256"] = _digest(temporary / CLASSIFIER)
            (temporary / SETTINGS).write_text(
                json.dumps(settings, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
            )
            if files.report is not None:
                (temporary / REPORT).write_text(files.report.to_json(), encoding="utf-8")
                files.report.save_html(temporary / PAGE)
                (temporary / TEXT).write_text(markdown_report(files.report), encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"guard: out={folder} cannot be written ({error.strerror}); expected a writable folder with space. Choose "
            "another folder."
        ) from error


def read_guard(folder: Path) -> GuardFiles:
    """Read the folder of a guard.

    Raises:
        CheckpointError: if a file is missing or damaged, or of a later format.
    """
    from safetensors.torch import load

    if not (folder / SETTINGS).is_file():
        raise CheckpointError(
            f"guard: folder={folder} holds no {SETTINGS}; expected the folder of a guard. Make one with fw guard "
            "calibrate."
        )
    try:
        stored = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
        options = GuardOptions.parse(stored["options"], where=str(folder / SETTINGS))
        weights = (folder / WEIGHTS).read_bytes()
        if hashlib.sha256(weights).hexdigest() != stored["sha256"]:
            raise ValueError(f"{WEIGHTS} is not the file that was written")
        tensors = load(weights)
        tiers = sorted({name.split(".")[0] for name in tensors if "." in name})
        scores = {tier: Linear(*(tensors[f"{tier}.{part}"] for part in _PARTS)) for tier in tiers}
        wanted = {stage.tier for stage in options.stages} | ({NAME} if options.monitor else set())
        missing = wanted - scores.keys()
        if missing:
            raise ValueError(f"no weights for {', '.join(sorted(missing))}")
        classifier = None
        if options.text_classifier == "finetune" and any(stage.tier == "probe" for stage in options.stages):
            if _digest(folder / CLASSIFIER) != stored.get("classifier_sha256"):
                raise ValueError(f"{CLASSIFIER} is not the folder that was written")
            classifier = FineTuned.load(folder / CLASSIFIER)
        report = None
        if (folder / REPORT).is_file():
            report = Report.from_json((folder / REPORT).read_text(encoding="utf-8"))
    except (OSError, ValueError, KeyError, TypeError, ConfigError) as error:
        raise CheckpointError(
            f"guard: folder={folder} is damaged ({error}); expected the files that fw guard calibrate wrote. Copy them "
            "again, or calibrate again."
        ) from error
    return GuardFiles(options, scores, tensors.get("vocabulary"), stored.get("fingerprints"), report, classifier)


def _digest(folder: Path) -> str:
    """Return what tells the files of a folder from others."""
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            found.update(path.name.encode() + path.read_bytes())
    return found.hexdigest()
