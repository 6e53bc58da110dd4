"""Every error that featherweight raises on purpose.

The tree (each class also is the standard error that a caller would expect):

    FeatherweightError
    ├── ConfigError(ValueError)         a setting, file or argument is wrong
    ├── ShapeError(ValueError)          tensors do not fit together
    ├── CheckpointError(RuntimeError)   a checkpoint is missing, damaged or belongs to another run
    ├── NumericsError(RuntimeError)     a number became NaN or infinite, or an algorithm did not converge
    ├── MissingExtraError(ImportError)  an optional package is not installed
    └── DeviceError(RuntimeError)       the device cannot do what was asked
        └── OutOfMemoryError            its memory ran out

Messages follow one form: where, which value is wrong, what is allowed, what to do now.
"""

import difflib
from collections.abc import Iterable


class FeatherweightError(Exception):
    """Root of all errors raised on purpose; catch it to catch them all."""

    is_common: bool = False
    """Whether all processes of a group raise it alike, so that one of them tells the user."""


class ConfigError(FeatherweightError, ValueError):
    """A setting, file or argument is wrong."""


class ShapeError(FeatherweightError, ValueError):
    """Tensors do not fit together."""


class CheckpointError(FeatherweightError, RuntimeError):
    """A checkpoint is missing, damaged, or belongs to another run."""


class NumericsError(FeatherweightError, RuntimeError):
    """A number became NaN or infinite, or an algorithm did not converge."""


class MissingExtraError(FeatherweightError, ImportError):
    """An optional package is not installed; the message holds the install command."""


class DeviceError(FeatherweightError, RuntimeError):
    """The device cannot do what was asked."""


class OutOfMemoryError(DeviceError):
    """The memory of the device ran out."""


def nearest(name: str, known: Iterable[str], limit: int = 3) -> list[str]:
    """Return the known names that look most like `name`, best first.

    Args:
        name: what the user wrote.
        known: what exists.
        limit: how many names to return at most.

    Example:
        >>> nearest("rnak", ["rank", "scale"])
        ['rank']
    """
    return difflib.get_close_matches(name, list(known), n=limit, cutoff=0.5)


LISTED = "Choose one of them."
"""What closes a message that has listed all that is known already; see `did_you_mean`."""


def did_you_mean(name: str, known: Iterable[str], *, otherwise: str | None = None) -> str:
    """Return a closing sentence that names the nearest spelling, or else all that is known.

    Args:
        name: what was given.
        known: what could have been meant.
        otherwise: the sentence where nothing is near, such as `LISTED`; None lists all that is known.

    Example:
        >>> did_you_mean("rnak", ["rank", "scale"])
        "Did you mean 'rank'?"
        >>> did_you_mean("xyz", ["rank", "scale"])
        'Known: rank, scale.'
    """
    names = list(known)
    close = nearest(name, names, limit=1)
    if close:
        return f"Did you mean '{close[0]}'?"
    return f"Known: {', '.join(names)}." if otherwise is None else otherwise
