"""What students hand in: a gripper and a master for the prizes of design, checked before they are kept.

It belongs to the thread of the server's event loop; only the examination runs elsewhere, one after the other.
"""

import json
import re
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featherweight.config import write_atomically
from featherweight.errors import ConfigError
from featherweight.robot.classroom.preflight import Verdict, examine

SLOTS = {"gripper": (".stl", ".3mf", ".json"), "master": (".stl", ".3mf")}
"""Slot -> kinds of file. No Python file: it would run on the teacher's computer."""
MAX_BYTES = 4_000_000
MAX_VERSIONS = 20
"""Of one slot of one student; each one is kept."""
SILENT_S = 60.0
"""After which an upload that does not go on is given up."""


@dataclass
class _Coming:
    slot: str
    suffix: str
    size: int
    data: bytearray
    heard_s: float


class Uploads:
    """The slots of all students of a class.

    Args:
        folder: of the class; a student's files are in ``students/NAME/uploads``.
        clock: time in seconds.
        check: examines a file; may take long.
    """

    def __init__(
        self,
        folder: Path,
        clock: Callable[[], float] = time.monotonic,
        check: Callable[[Path], Verdict] = examine,
    ) -> None:
        self._folder, self._clock, self._check = folder, clock, check
        self._coming: dict[str, _Coming] = {}
        self._told: dict[str, dict[str, dict[str, str]]] = {}
        self._worker = ThreadPoolExecutor(1, "uploads")
        self._running: dict[tuple[str, str], Future[Verdict]] = {}

    def begin(self, student: str, request: Any) -> None:
        """Take the announcement {"slot", "name", "bytes"} of a file; what is wrong with it is told to the student."""
        if not isinstance(request, dict) or request.get("slot") not in SLOTS:
            return
        slot, size = request["slot"], request.get("bytes")
        suffix = Path(str(request.get("name", ""))).suffix.lower()
        size = size if isinstance(size, int) else -1
        trouble = ""
        if suffix not in SLOTS[slot]:
            trouble = f"upload: name={str(request.get('name'))[:40]} is no {' or '.join(SLOTS[slot])}; export it so."
        elif not 0 < size <= MAX_BYTES:
            trouble = f"upload: bytes={request.get('bytes')} is not between 1 and {MAX_BYTES}; make it simpler."
        elif (student, slot) in self._running:
            trouble = "upload: the file before is still being examined; wait for it."
        elif len(self._versions(student, slot)) >= MAX_VERSIONS:
            trouble = f"upload: {MAX_VERSIONS} files are kept already; ask the teacher to take some away."
        if trouble:
            self._tell(student, slot, "faulty", trouble)
            return
        self._coming[student] = _Coming(slot, suffix, size, bytearray(), self._clock())
        self._tell(student, slot, "coming", "")

    def add(self, student: str, data: bytes) -> None:
        """Take the next piece of a file; one that nobody announced is left."""
        coming = self._coming.get(student)
        if coming is None:
            return
        coming.data += data
        coming.heard_s = self._clock()
        if len(coming.data) < coming.size:
            return
        del self._coming[student]
        if len(coming.data) > coming.size:
            self._tell(student, coming.slot, "faulty", "upload: more came than was announced; try again.")
            return
        self._tell(student, coming.slot, "checking", "")
        work = self._worker.submit(self._keep, student, coming.slot, coming.suffix, bytes(coming.data))
        self._running[student, coming.slot] = work

    def told(self, student: str) -> dict[str, dict[str, str]]:
        """Return slot -> {"state": "coming", "checking", "good" or "faulty", "text"} of a student, for the page."""
        return dict(self._told.get(student, {}))  # a copy: pages are told what has changed

    def look(self) -> None:
        """Take what the examiner found, and give up what does not go on; to be called about once a second."""
        for (student, slot), work in list(self._running.items()):
            if not work.done():
                continue
            del self._running[student, slot]
            try:
                verdict = work.result()
            except Exception as error:  # a full disk, or a fault of ours: the student is told, the class goes on
                verdict = Verdict(False, " ".join(str(error).split())[:300])
            self._tell(student, slot, "good" if verdict.is_good else "faulty", verdict.text)
        for student, coming in list(self._coming.items()):
            if self._clock() - coming.heard_s > SILENT_S:
                del self._coming[student]
                self._tell(student, coming.slot, "faulty", "upload: it broke off; try again.")

    def close(self) -> None:
        """Wait for a file that is being examined."""
        self._worker.shutdown(cancel_futures=True)

    def _keep(self, student: str, slot: str, suffix: str, data: bytes) -> Verdict:
        """Examine a file beside its place and keep it if it is good; in the examiner's thread."""
        folder = self._folder / "students" / student / "uploads"
        number = max([int(path.stem.rsplit("-", 1)[1]) for path in self._versions(student, slot)], default=0) + 1
        new = folder / f".{slot}{suffix}"
        try:
            write_atomically(new, data)
            verdict = self._check(new)
            # The student knows the slot, and not the teacher's folders.
            text = verdict.text.replace(str(new), f"{slot}{suffix}").replace(new.stem, slot)
            verdict = Verdict(verdict.is_good, text)
            if verdict.is_good:
                path = folder / f"{slot}-{number:03d}{suffix}"
                told = {"file": path.name, "bytes": len(data), "text": verdict.text, "date": time.strftime("%Y-%m-%d")}
                write_atomically(folder / f"{path.name}.report.json", json.dumps(told, indent=2) + "\n")
                new.replace(path)
            return verdict
        except OSError as error:
            raise ConfigError(f"upload: file={new.name} cannot be kept ({error.strerror}); free some space.") from error
        finally:
            new.unlink(missing_ok=True)

    def _versions(self, student: str, slot: str) -> list[Path]:
        folder = self._folder / "students" / student / "uploads"
        pattern = re.compile(rf"{slot}-\d{{3}}\.(stl|3mf|json)")
        return [path for path in folder.iterdir() if pattern.fullmatch(path.name)] if folder.is_dir() else []

    def _tell(self, student: str, slot: str, state: str, text: str) -> None:
        self._told.setdefault(student, {})[slot] = {"state": state, "text": text}
