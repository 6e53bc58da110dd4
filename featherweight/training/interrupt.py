"""Ctrl-C and SIGTERM as a request to stop at the next good moment.

The first signal only sets a flag, which the loop reads after each optimizer step, and says so on standard error; the
second one interrupts at once.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType


class TrainingInterrupted(KeyboardInterrupt):
    """Training ended early on request, with a checkpoint written.

    A `KeyboardInterrupt`, so that a notebook or script stops as it does on any Ctrl-C.

    Args:
        step: optimizer steps that are done.
        checkpoint: the folder that a resumed run continues from.
    """

    def __init__(self, step: int, checkpoint: Path) -> None:
        self.step, self.checkpoint = step, checkpoint
        super().__init__(step, checkpoint)

    def __str__(self) -> str:
        return f"training: interrupted after step {self.step}; checkpoint {self.checkpoint} is complete."


@dataclass
class StopRequest:
    """Whether somebody asked for the end of the run, and why more steps are not worth it."""

    requested: bool = False
    """Somebody wants it to end now and to go on later."""
    reason: str = ""
    """If not empty, the run is done before its last step."""


ACKNOWLEDGEMENT = (
    b"\nStopping after the current step or evaluation; the same signal again stops at once and loses what is since the "
    b"last checkpoint.\n"
)
"""Without an answer to Ctrl-C one presses it again, and that loses work."""


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Turn the first SIGINT or SIGTERM inside the body into a `StopRequest`.

    Only the main thread can receive signals; in any other one the request simply never comes.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def handle(number: int, frame: FrameType | None) -> None:
        if request.requested:
            raise KeyboardInterrupt
        request.requested = True
        # Not through sys.stderr, which the interrupted code may be in the middle of writing to.
        with suppress(OSError):
            os.write(2, ACKNOWLEDGEMENT)

    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
