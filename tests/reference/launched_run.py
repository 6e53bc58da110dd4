"""`fw` with the regression task, as a program that torchrun can start; argv: words for `fw`.

KILL=WHO:STEP:MARKER lets a process end itself by SIGKILL before a step, unless the file MARKER is there; it makes it.
WHO is a rank, "all", or "agent": the launcher of rank 0, with its ranks. Several of these are separated by commas.
"""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch

from featherweight.cli import main
from featherweight.training.loop import Loop
from featherweight.training.task import tasks

sys.path.insert(0, str(Path(__file__).parent))
tasks.register("regression", "regression_task:RegressionTask")
torch.set_num_threads(1)


def die_once(kills: list[tuple[str, int, Path]]) -> None:
    """Let processes end before some steps, each once."""
    advance, rank = Loop.step, os.environ["RANK"]

    def dying(self: Loop) -> dict[str, float]:
        for who, step, marker in kills:
            # Every rank of "all" has a marker of its own, as the first one to go may end the others.
            own = marker.with_name(f"{marker.name}-{rank}")
            if self.progress.step != step or marker.exists() or own.exists():
                continue
            if who == "all":
                own.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            if who in (rank, "agent") and (who == rank or rank == "0"):
                marker.touch()
                if who == "agent":
                    os.kill(os.getppid(), signal.SIGKILL)
                os.kill(os.getpid(), signal.SIGKILL)
        return advance(self)

    change: Any = Loop
    change.step = dying


if __name__ == "__main__":
    if "KILL" in os.environ:
        found = [one.split(":") for one in os.environ["KILL"].split(",")]
        die_once([(who, int(when), Path(place)) for who, when, place in found])
    main(sys.argv[1:])
