"""The progress of a run on a terminal: a bar that moves; elsewhere: a line now and then."""

import os
import sys
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

from featherweight.report.formatting import format_value
from featherweight.training.events import Callback, Event
from featherweight.training.summary import metric_words

SECONDS_BETWEEN_LINES = 60.0
"""Without a terminal, of the progress inside of a long step."""
FULL_WIDTH = 80
"""Columns of a terminal that hold all numbers beside the bar."""


class PatientConsole(Console):
    """A console whose reader may leave: what nobody reads any more (fw train | head) must not end a run."""

    def on_broken_pipe(self) -> None:
        """Say no more; rich would leave the program."""
        self.quiet = True
        if self.file is sys.stdout:
            # Python would complain at its end of what is still in the buffer.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class ConsoleProgress(Callback):
    """Shows loss, tokens/s (or what the task counts), memory and the time left.

    Args:
        label: what is running, for example the name of the optimizer.
        console: where to; standard output by default. If it is no terminal, one line appears per `log_every` steps.
    """

    def __init__(self, label: str = "train", console: Console | None = None) -> None:
        self.label, self.console = label, console or PatientConsole()
        self._bar: Progress | None = None
        self._said_at = time.monotonic()

    def on_start(self, event: Event) -> None:
        """Show the bar; a resumed run says where it goes on."""
        if event.step:
            self._print(f"goes on after step {event.step} of {event.recipe.steps}")
        if not self.console.is_terminal:
            return
        self._bar = Progress(
            # Not every terminal can show the usual spinner, whose characters would then stop the run.
            SpinnerColumn("dots" if self.console.encoding.lower().startswith("utf") else "line"),
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
            TimeRemainingColumn(),
            console=self.console,
        )
        self._bar.add_task(self.label, total=event.recipe.step_count, completed=event.step, numbers="")
        self._bar.start()

    def on_progress(self, event: Event) -> None:
        """Move the bar inside of a step, or print a line once a minute."""
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=event.step + event.share, numbers=event.notice)
        elif time.monotonic() - self._said_at > SECONDS_BETWEEN_LINES:
            self._said_at = time.monotonic()
            self._print(f"step {event.step + 1}/{event.recipe.steps}  {event.share:.0%}: {event.notice}")

    def on_step(self, event: Event) -> None:
        """Move the bar, or print a line."""
        self._said_at = time.monotonic()
        if self._bar is not None:
            # In a narrow terminal the count of the steps and the time left matter more than the other numbers.
            numbers = _numbers(event) if self.console.width >= FULL_WIDTH else _loss(event)
            self._bar.update(self._bar.task_ids[0], completed=event.step, numbers=numbers)
        elif event.step % event.recipe.log_every == 0:
            self._print(f"step {event.step}/{event.recipe.steps}  {_numbers(event)}")

    def on_evaluate(self, event: Event) -> None:
        """Print the metrics of an evaluation."""
        numbers = "  ".join(
            f"{metric_words(name)} {format_value(name, value)}" for name, value in event.metrics.items()
        )
        self._print(f"evaluated after step {event.step}: {numbers}")

    def on_checkpoint(self, event: Event) -> None:
        """Print where the checkpoint stands."""
        if isinstance(event.checkpoint, Path):
            self._print(f"checkpoint {event.checkpoint.name} written")

    def on_notice(self, event: Event) -> None:
        """Print it."""
        self._print(f"note: {event.notice}")

    def on_end(self, event: Event) -> None:
        """Leave the bar as it stands."""
        if self._bar is not None:
            self._bar.stop()

    def _print(self, line: str) -> None:
        self.console.print(f"{self.label}: {line}", highlight=False, markup=False, soft_wrap=True)


def _loss(event: Event) -> str:
    return f"loss {event.metrics['loss']:.4f}"


def _numbers(event: Event) -> str:
    speed = event.metrics.get(event.words.rate_key)
    parts = [_loss(event)]
    if speed is not None:
        parts.append(f"{speed:,.0f} {event.words.items}/s")
    parts.append(f"process {memory_in_use_bytes() / 2**30:.2f} GiB")
    return "  ".join(parts)


def memory_in_use_bytes() -> int:
    """Return what the process holds now: tensors on the GPU if one is in use, else resident memory."""
    if torch.cuda.is_available() and torch.cuda.memory_allocated():
        return torch.cuda.memory_allocated()
    if torch.backends.mps.is_available() and (held := torch.mps.current_allocated_memory()):
        return held
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        import psutil  # no /proc outside Linux

        return int(psutil.Process().memory_info().rss)
    return pages * os.sysconf("SC_PAGE_SIZE")
