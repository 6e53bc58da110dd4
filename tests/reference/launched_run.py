"""`fw` with the regression task, as a program that torchrun can start; argv: words for `fw`.

KILL=RANK:STEP:MARKER lets a process end itself by SIGKILL before a step, unless the file MARKER is there; it makes it.
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


def die_once(rank: str, step: int, marker: Path) -> None:
    """Let a process of that rank end before that step, once."""
    advance = Loop.step

    def dying(self: Loop) -> dict[str, float]:
        if os.environ["RANK"] == rank and self.progress.step == step and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return advance(self)

    change: Any = Loop
    change.step = dying


if __name__ == "__main__":
    if "KILL" in os.environ:
        number, when, place = os.environ["KILL"].split(":")
        die_once(number, int(when), Path(place))
    main(sys.argv[1:])
