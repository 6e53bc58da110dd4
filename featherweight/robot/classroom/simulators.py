"""The processes of the students' simulators: started one after the other, and again when one dies."""

import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

LOOK_S = 0.2
BACKOFF_S = (1.0, 30.0)
HEALTHY_S = 20.0
"""Who lived this long is started again at once."""
END_S = 5.0


@dataclass
class _Child:
    command: Sequence[str]
    process: "subprocess.Popen[bytes] | None" = None
    started_s: float = 0.0
    wait_s: float = BACKOFF_S[0]
    due_s: float = 0.0
    starts: int = 0
    errors: list[str] = field(default_factory=list)


class Simulators:
    """Keeps one process for each name.

    Args:
        commands: name -> command; it ends when its standard input does.
        apart_s: time between two first starts, so that thirty of them do not start at once.
    """

    def __init__(self, commands: Mapping[str, Sequence[str]], apart_s: float = 0.5) -> None:
        now_s = time.monotonic()
        self._children = {
            name: _Child(command, due_s=now_s + i * apart_s) for i, (name, command) in enumerate(commands.items())
        }
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="simulators", daemon=True)
        self._thread.start()

    @property
    def processes(self) -> dict[str, int]:
        """Name -> number of the process, of those that run."""
        return {
            name: child.process.pid
            for name, child in self._children.items()
            if child.process is not None and child.process.poll() is None
        }

    def starts(self, name: str) -> int:
        """Return how often a simulator was started."""
        return self._children[name].starts

    def close(self) -> None:
        """End all of them."""
        self._stop.set()
        self._thread.join(timeout=END_S)
        processes = [child.process for child in self._children.values() if child.process is not None]
        for process in processes:
            if process.stdin is not None:
                process.stdin.close()
        end_s = time.monotonic() + END_S
        for process in processes:
            try:
                process.wait(timeout=max(0.1, end_s - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _run(self) -> None:
        while not self._stop.wait(LOOK_S):
            now_s = time.monotonic()
            for child in self._children.values():
                self._look(child, now_s)

    def _look(self, child: _Child, now_s: float) -> None:
        if child.process is not None and child.process.poll() is not None:
            if child.process.stdin is not None:
                child.process.stdin.close()
            child.process = None
            is_healthy = now_s - child.started_s > HEALTHY_S
            child.wait_s = BACKOFF_S[0] if is_healthy else min(2 * child.wait_s, BACKOFF_S[1])
            child.due_s = now_s + (0.0 if is_healthy else child.wait_s)
        if child.process is None and now_s >= child.due_s:
            child.process = subprocess.Popen(child.command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
            child.started_s = now_s
            child.starts += 1


def student_command(member: str, relay: str, folder: str, cubes: int, cameras: Sequence[str] = ()) -> list[str]:
    """Return the command of one student's simulator."""
    command = [sys.executable, "-m", "featherweight.robot.classroom.student", "--member", member, "--relay", relay]
    command += ["--folder", folder, "--cubes", str(cubes)]
    for camera in cameras:
        command += ["--camera", camera]
    return command
