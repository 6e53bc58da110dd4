"""What steps in chunks have in common: how far one has come, and which chunks are allowed."""

from typing import Any, NamedTuple

from featherweight.errors import ConfigError


class StepProgress(NamedTuple):
    """How far a step has come."""

    share: float
    """Of the step's arithmetic without attention, in (0, 1]."""
    words: str
    """What was done last: "backward, layer 3 of 30, chunk 2 of 16"."""


def require_chunk_tokens(where: str, chunk_tokens: Any) -> None:
    """Refuse what is no number of tokens.

    Raises:
        ConfigError: for anything but a whole number of at least 1.
    """
    if not isinstance(chunk_tokens, int) or isinstance(chunk_tokens, bool) or chunk_tokens < 1:
        raise ConfigError(
            f"{where}: chunk_tokens={chunk_tokens!r} is not allowed; expected a whole number >= 1. Take 8192 if in "
            "doubt."
        )
