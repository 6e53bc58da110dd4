"""Which trackers a recipe may name: those that accelerate knows and that are installed, asked without importing it."""

import re
from collections.abc import Iterable
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

from featherweight.errors import ConfigError, MissingExtraError, did_you_mean

_PACKAGES = {"tensorboard": ("tensorboard", "tensorboardX")}
"""Packages that serve a tracker, where they have not its name."""


def require_trackers(names: Iterable[str]) -> None:
    """Refuse trackers that accelerate does not know, or whose package is missing.

    Raises:
        ConfigError: if accelerate knows no tracker of a name.
        MissingExtraError: if its package is not installed.
    """
    for name in names:
        if name not in known_trackers():
            raise ConfigError(
                f"recipe: trackers={name} is unknown; expected names of accelerate's trackers. "
                f"{did_you_mean(name, known_trackers())}"
            )
        if not any(find_spec(package) for package in _PACKAGES.get(name, (name,))):
            raise MissingExtraError(
                f"recipe: trackers={name} is not installed; expected its package. Run: pip install {name}"
            )


@lru_cache
def known_trackers() -> tuple[str, ...]:
    """Return the trackers of the installed accelerate, as its source lists them: importing it imports torch."""
    package = find_spec("accelerate")
    assert package is not None and package.origin is not None, "accelerate is a dependency"
    source = (Path(package.origin).parent / "utils" / "dataclasses.py").read_text(encoding="utf-8")
    _, _, kinds = source.partition("class LoggerType(")
    names = re.findall(r'^    [A-Z_]+ = "(\w+)"', kinds.partition("\nclass ")[0], re.MULTILINE)
    return tuple(name for name in names if name != "all")
