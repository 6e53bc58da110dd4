"""What a run was made with: machine and versions, so that its figures can be judged and repeated."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import featherweight

PACKAGES = ("torch", "transformers", "accelerate", "datasets", "tokenizers", "safetensors", "numpy")
"""Packages whose version can change a number."""


def describe_environment() -> dict[str, Any]:
    """Return machine and versions as plain values; memory in bytes, no names of users or folders."""
    return {
        "featherweight": featherweight.__version__,
        "python": platform.python_version(),
        "packages": {name: found for name in PACKAGES if (found := _version(name))},
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cpu_cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_bytes": _memory_bytes(),
        "gpus": _gpus(),
        "cuda": torch.version.cuda,
    }


def machine_name(environment: dict[str, Any]) -> str:
    """Return the machine in a few words, for the facts of a report."""
    if environment["gpus"]:
        return ", ".join(environment["gpus"])
    return f"{environment['processor']}, {environment['threads']} of {environment['cpu_cores']} cores used"


def _gpus() -> list[str]:
    if torch.backends.mps.is_available():
        return [f"{_processor()} (MPS)"]
    return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    """Return the processor's name; Python's own answer is only its architecture on Linux."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _memory_bytes() -> int:
    import psutil

    return int(psutil.virtual_memory().total)
