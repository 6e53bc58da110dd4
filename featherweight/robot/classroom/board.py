"""The leader board: each student's best run, kept in a file that is written whole or not at all."""

import csv
import io
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from featherweight.config import write_atomically
from featherweight.errors import ConfigError


@dataclass(frozen=True)
class Row:
    """The best run of one student.

    Attributes:
        name: of the student.
        points: of the challenge.
        placed: cubes in the bin.
        cubes: on the table.
        time_s: until the last was placed, or the end.
        smoothness: spectral arc length of the tool's path, nearer to 0 is smoother; decides ties.
        round_trip_ms: in the middle; runs compare at equal delay.
        runs: of this student so far.
    """

    name: str
    points: float
    placed: int
    cubes: int
    time_s: float
    smoothness: float
    round_trip_ms: float
    runs: int = 1

    @property
    def rank(self) -> tuple[float, float]:
        """What rows are ordered by, best last."""
        return self.points, self.smoothness


class Board:
    """Rows by student.

    Args:
        path: of the file; one that is there is read.
    Raises:
        ConfigError: if the file is damaged.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._rows: dict[str, Row] = {}
        if path.exists():
            try:
                self._rows = {row["name"]: Row(**row) for row in json.loads(path.read_text(encoding="utf-8"))}
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise ConfigError(
                    f"class: board={path} cannot be read ({error}); expected a leader board. Move it away to begin a "
                    "new one."
                ) from error

    @property
    def rows(self) -> list[Row]:
        """Best first."""
        return sorted(self._rows.values(), key=lambda row: row.rank, reverse=True)

    def enter(self, name: str, score: dict[str, Any]) -> None:
        """Take the score of a run; the better one of a student stays."""
        told = {key: score[key] for key in ("points", "placed", "cubes", "time_s", "round_trip_ms")}
        before = self._rows.get(name)
        row = Row(name, smoothness=score["spectral_arc_length"], runs=1 + (before.runs if before else 0), **told)
        if before is not None and before.rank >= row.rank:
            row = Row(**{**asdict(before), "runs": row.runs})
        self._rows[name] = row
        write_atomically(self._path, json.dumps([asdict(one) for one in self.rows], indent=2) + "\n")

    def to_csv(self) -> str:
        """Return the board as a table."""
        out = io.StringIO()
        writer = csv.DictWriter(out, list(Row.__dataclass_fields__), lineterminator="\n")
        writer.writeheader()
        for row in self.rows:
            writer.writerow(asdict(row))
        return out.getvalue()
