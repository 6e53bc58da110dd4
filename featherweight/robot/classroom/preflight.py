"""Examines a file that somebody handed in, in a process of its own, with limits of time and memory.

What comes from a student may be anything: a mesh of a million folds must not take the memory or the time of a class.
``python -m featherweight.robot.classroom.preflight FILE`` prints the verdict.
"""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from featherweight.errors import FeatherweightError

LIMIT_S, LIMIT_BYTES = 60.0, 3 << 30
MOST_TRIANGLES = 200_000
"""What prints no finer on a printer of 0.1 mm; a part of 4 MB as binary STL has 80,000."""
MOST_FAULTS = 4
"""Told to the student at once; the next ones after these are mended."""


@dataclass(frozen=True)
class Verdict:
    """What the examination says.

    Attributes:
        is_good: whether it prints, and fits where it has to.
        text: faults in sentences, or figures of a good one.
    """

    is_good: bool
    text: str


def examine(path: Path, limit_s: float = LIMIT_S) -> Verdict:
    """Run `hardware.check.check` on a file, with limits of time and memory.

    Cost: two to four seconds, most of them for starting Python.
    """
    command = [sys.executable, "-m", "featherweight.robot.classroom.preflight", str(path)]
    try:
        done = subprocess.run(command, capture_output=True, timeout=limit_s, check=False, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        return Verdict(False, f"upload: the examination took more than {limit_s:g} s; make the part simpler.")
    try:
        return Verdict(**json.loads(done.stdout.splitlines()[-1]))
    except (ValueError, IndexError, TypeError):
        return Verdict(False, f"upload: the examination ended with code {done.returncode}; make the part simpler.")


def main(arguments: list[str]) -> int:
    """Examine one file and print the verdict as JSON."""
    _limit_memory()
    from featherweight.robot.hardware.check import check

    try:
        found = check(arguments[0], most_triangles=MOST_TRIANGLES)
    except FeatherweightError as error:
        verdict = Verdict(False, str(error))
    except (Exception, MemoryError) as error:  # whatever a file does to a library is a sentence for its author
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        verdict = Verdict(False, f"upload: the file cannot be examined ({reason}); make the part simpler.")
    else:
        faults = [f"{fault.name}: {fault.text}" for _, fault in found.faults]
        more = [f"and {len(faults) - MOST_FAULTS} more"] if len(faults) > MOST_FAULTS else []
        figures = [f"{name}: {value}" for name, value in found.figures.items()]
        verdict = Verdict(not faults, " · ".join([*faults[:MOST_FAULTS], *more] if faults else figures)[:600])
    sys.stdout.write(json.dumps(vars(verdict)) + "\n")
    return 0


def _limit_memory() -> None:
    try:
        import resource
    except ImportError:  # Windows has none; the limit of time stays
        return
    resource.setrlimit(resource.RLIMIT_AS, (LIMIT_BYTES, LIMIT_BYTES))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
