"""Silence of `transformers` and `huggingface_hub`, where a caller checks itself what they would report."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_hub() -> Iterator[None]:
    """Silence `huggingface_hub` inside the block; its setting comes back afterwards. Imports no `transformers`."""
    from huggingface_hub.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence progress bars, load reports and advice of `transformers` and `huggingface_hub` inside the block; their
    settings come back afterwards.

    Errors still arrive as exceptions, and the callers here check what the silenced reports would have said.
    """
    from transformers.utils import logging

    verbosity, had_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with quiet_hub():
            yield
    finally:
        logging.set_verbosity(verbosity)
        if had_bars:
            logging.enable_progress_bar()
