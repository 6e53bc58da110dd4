"""Which files of a folder a task trains and is tested on; nothing is read, and torch not needed."""

import re
from pathlib import Path

from featherweight.errors import ConfigError
from featherweight.pde.options import PdeConfig
from featherweight.pde.problem_options import PROBLEM_OPTIONS


def find_files(config: PdeConfig) -> tuple[Path, list[Path]]:
    """Return the file to train on and those to be tested on.

    Raises:
        ConfigError: if there is not one file to train on, or one that is named is not there.
    """
    path = Path(config.data)
    tests = [Path(one) for one in config.test_data]
    for one in tests:
        if not one.is_file():
            raise ConfigError(f"pde task: test_data={one} is no file; expected one to test on. Correct the path.")
    if path.is_file():
        return path, tests
    found = sorted(path.glob("*_train_*.pt")) if path.is_dir() else []
    if config.resolution is not None:
        found = [one for one in found if one.stem.endswith(f"_{config.resolution}")]
    if len(found) != 1:
        names = ", ".join(one.name for one in found) or "none"
        wanted = "*_train_*.pt" if config.resolution is None else f"*_train_*_{config.resolution}.pt"
        raise ConfigError(
            f"pde task: data={config.data} holds {names} of the wanted training files ({wanted}); expected a file, a "
            f"folder with one of them, or one of {', '.join(PROBLEM_OPTIONS)}. Set resolution to that of the data, or "
            "make them with fw pde generate."
        )
    own = found[0].with_name(found[0].name.replace("_train_", "_test_"))
    prefix = found[0].name.partition("_train_")[0]
    others = [one for one in sorted(path.glob(f"{prefix}_test_*.pt"), key=_resolution) if one != own]
    return found[0], tests or [*([own] if own.exists() else []), *others]


def _resolution(path: Path) -> int:
    digits = re.search(r"(\d+)$", path.stem)
    return int(digits[1]) if digits else 0
