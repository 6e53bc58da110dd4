"""Files of a user's own that register tasks, optimizers or methods before a recipe is read: `--import my.py`."""

import importlib.util
import sys
from pathlib import Path

from featherweight.errors import ConfigError, FeatherweightError, did_you_mean


def import_files(paths: list[Path] | None) -> list[Path] | None:
    """Run each file once, as a module of its own name; files beside it can be imported from it.

    Raises:
        ConfigError: if a file is missing, has the name of another module, or fails; names file and line.
    """
    for path in paths or []:
        _import_file(path)
    return paths


def _import_file(path: Path) -> None:
    if not path.is_file():
        siblings = [one.name for one in path.parent.glob("*.py")] if path.parent.is_dir() else []
        raise ConfigError(
            f"--import: file={path} does not exist; expected a Python file. "
            f"{did_you_mean(path.name, siblings, otherwise='Check the path.')}"
        )
    name, place = path.stem, path.resolve()
    known = sys.modules.get(name)
    if known is not None and Path(getattr(known, "__file__", None) or "").resolve() == place:
        return
    spec = importlib.util.spec_from_file_location(name, place)
    is_taken = known is not None or _elsewhere(name, place)
    if spec is None or spec.loader is None or is_taken or not name.isidentifier():
        reason = f"has the name of the module {name!r}" if is_taken else "has no name of a Python module"
        raise ConfigError(
            f"--import: file={path} {reason}; expected a file with a name of its own, such as my_task.py. Rename it."
        )
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    if str(place.parent) not in sys.path:
        sys.path.append(str(place.parent))
    try:
        spec.loader.exec_module(module)
    except FeatherweightError:
        del sys.modules[name]
        raise
    except Exception as error:
        del sys.modules[name]
        raise ConfigError(
            f"--import: file={path} fails in line {_line_of(error, place)} ({type(error).__name__}: {error}); expected "
            "a file that can be imported. Correct it; FEATHERWEIGHT_DEBUG=1 shows where it came from."
        ) from error


def _elsewhere(name: str, place: Path) -> bool:
    """Tell whether `import name` would find another module."""
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return False
    return spec is not None and Path(spec.origin or "").resolve() != place


def _line_of(error: BaseException, place: Path) -> int | str:
    """Return the last line of the file on the way to an error."""
    if isinstance(error, SyntaxError):
        return error.lineno or "?"
    found: int | str = "?"
    trace = error.__traceback__
    while trace is not None:
        if Path(trace.tb_frame.f_code.co_filename).resolve() == place:
            found = trace.tb_lineno
        trace = trace.tb_next
    return found
