"""Training: recipes, the loop, checkpoints, and runs that leave a folder with everything one needs to judge and
repeat them.

The functions `train` and `compare` stand directly under `featherweight`; here are the types around them. Names load
on first use, because a task needs only the contract and not the loop.
"""

import importlib
from typing import Any

_LAZY = {
    "Callback": "featherweight.training.events",
    "ChunkMajor": "featherweight.training.chunk_major",
    "Event": "featherweight.training.events",
    "LayerMajor": "featherweight.training.layer_major",
    "MethodCallback": "featherweight.training.huggingface",
    "ReportCallback": "featherweight.training.huggingface",
    "Recipe": "featherweight.training.recipe",
    "Run": "featherweight.training.run",
    "Schedule": "featherweight.training.schedule",
    "Task": "featherweight.training.task",
    "Words": "featherweight.training.task",
    "TrainingInterrupted": "featherweight.training.interrupt",
    "follow_groups": "featherweight.training.schedule",
    "measure": "featherweight.training.dry_run",
    "tasks": "featherweight.training.task",
    "train": "featherweight.training.run",
    "trainer_optimizer": "featherweight.training.huggingface",
}

__all__ = [*_LAZY]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'featherweight.training' has no attribute '{name}'")
    return getattr(importlib.import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
