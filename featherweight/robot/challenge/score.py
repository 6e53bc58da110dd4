"""From a log to a score: the same log always gives the same number.

    score = 100 placed / N + 20 (if all are placed) (1 - t / 180) - 5 drops - 3 collisions - 10 guard trips, at least 0

Smoothness is reported beside it, and decides ties: spectral arc length (nearer to 0 is smoother) and the logarithm of
the dimensionless jerk, of the tool's path.
Source of both: Balasubramanian et al., On the analysis of movement smoothness, J. NeuroEng. Rehabil. 12:112, 2015.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from featherweight.robot.challenge.log import Record

TIME_LIMIT_S = 180.0
PLACED_S, STILL_M_S = 1.0, 0.005
"""A cube is placed when it has lain in the zone for this long, slower than this."""
LIFTED_M = 0.035
"""A cube above this is lifted."""
DEBOUNCE_S = 0.5
"""Contacts of one pair nearer in time than this are one collision."""
FPS = 30.0
CUT_OFF_HZ, FLOOR = 10.0, 0.05
"""Of the spectral arc length: highest frequency, and share of the largest amplitude below which it is cut off."""


@dataclass(frozen=True)
class Score:
    """What a run is worth, and why."""

    points: float
    placed: int
    cubes: int
    time_s: float
    """Until the last cube was placed, or the end."""
    drops: int
    collisions: int
    guard_trips: int
    path_m: float
    spectral_arc_length: float
    log_jerk: float
    hold_s: float
    """Time in HOLD."""
    round_trip_ms: float
    """In the middle; runs compare at equal delay."""


class PlacedRule:
    """When one cube counts as placed: it has lain still in the zone for a second, let go by the gripper.

    The same rule ends a run and gives its points, so that no run ends a moment before its cube counts.

    Args:
        center_m: (3,) of the bin's floor.
        half_m: half of its width.
    """

    def __init__(self, center_m: Sequence[float] | NDArray[np.float64], half_m: float) -> None:
        self.at_s: float | None = None
        """When it was placed for the first time."""
        self._center, self._half = np.asarray(center_m, dtype=np.float64), half_m
        self._before: tuple[float, NDArray[np.float64]] | None = None
        self._since_s: float | None = None

    def see(self, time_s: float, place_m: Sequence[float], gripper_deg: float) -> None:
        """Take one frame, in their order: time, (3,) place of the cube, angle of the gripper."""
        place = np.asarray(place_m, dtype=np.float64)
        if self._before is not None:
            before_s, before = self._before
            is_still = float(np.linalg.norm(place - before)) / (time_s - before_s) < STILL_M_S
            is_good = is_still and gripper_deg > 0 and bool(_is_inside(place, self._center, self._half))
            self._since_s = (time_s if self._since_s is None else self._since_s) if is_good else None
            if self.at_s is None and self._since_s is not None and time_s - self._since_s >= PLACED_S - 1e-6:
                self.at_s = time_s
        self._before = time_s, place


def score_log(records: Sequence[Record]) -> Score:
    """Score the records of one run."""
    start, frames, end = records[0], [r for r in records if r["kind"] == "frame"], records[-1]
    cubes = int(start["cubes"])
    times = np.array([frame["t"] for frame in frames])
    places = np.array([frame["cubes"] for frame in frames]).reshape(len(frames), cubes, 3)
    center, half = np.array(start["bin"]), float(start["half"])
    rules = [PlacedRule(center, half) for _ in range(cubes)]
    for frame in frames:
        for rule, place in zip(rules, frame["cubes"], strict=True):
            rule.see(frame["t"], place, frame["gripper"])
    placed_at = [rule.at_s for rule in rules]
    placed = sum(at is not None for at in placed_at)
    is_done = placed == cubes
    time_s = max(at for at in placed_at if at is not None) if is_done else float(times[-1]) if len(times) else 0.0
    drops = sum(_drops(places[:, i], center, half) for i in range(cubes))
    collisions = count_collisions([(frame["t"], tuple(pair)) for frame in frames for pair in frame["hits"]])
    guard_trips = int(end["guard_trips"])
    points = 100 * placed / cubes + 20 * is_done * (1 - time_s / TIME_LIMIT_S)
    points -= 5 * drops + 3 * collisions + 10 * guard_trips
    tool = np.array([frame["tool"] for frame in frames]).reshape(len(frames), 3)
    return Score(
        points=round(max(0.0, points), 3),
        placed=placed,
        cubes=cubes,
        time_s=round(time_s, 3),
        drops=drops,
        collisions=collisions,
        guard_trips=guard_trips,
        path_m=round(float(np.linalg.norm(np.diff(tool, axis=0), axis=1).sum()), 4),
        spectral_arc_length=round(spectral_arc_length(_speed(tool)), 4),
        log_jerk=round(log_dimensionless_jerk(_speed(tool)), 4),
        hold_s=round(sum(frame["mode"] == "HOLD" for frame in frames) / FPS, 3),
        round_trip_ms=float(end["round_trip_ms"]),
    )


def count_collisions(hits: Sequence[tuple[float, tuple[str, ...]]]) -> int:
    """Count hits (time, pair), those of one pair within half a second as one."""
    count, last = 0, dict[tuple[str, ...], float]()
    for time_s, pair in hits:
        count += time_s - last.get(pair, -np.inf) > DEBOUNCE_S
        last[pair] = time_s
    return count


def spectral_arc_length(speed: NDArray[np.float64], fps: float = FPS) -> float:
    """Return the spectral arc length of a speed profile: negative, nearer to 0 for smoother motion."""
    if len(speed) < 4 or not speed.max() > 0:
        return 0.0
    points = 1 << (int(np.ceil(np.log2(len(speed)))) + 4)
    frequency = np.fft.rfftfreq(points, 1 / fps)
    amplitude = np.abs(np.fft.rfft(speed, points))
    amplitude /= amplitude.max()
    inside = frequency <= CUT_OFF_HZ
    frequency, amplitude = frequency[inside], amplitude[inside]
    above = np.flatnonzero(amplitude >= FLOOR)
    frequency, amplitude = frequency[: above[-1] + 1], amplitude[: above[-1] + 1]
    if len(frequency) < 2:
        return 0.0
    steps = np.diff(frequency) / (frequency[-1] - frequency[0])
    return float(-np.sqrt(steps**2 + np.diff(amplitude) ** 2).sum())


def log_dimensionless_jerk(speed: NDArray[np.float64], fps: float = FPS) -> float:
    """Return -ln of the squared jerk over the whole motion, made dimensionless by its duration and largest speed."""
    if len(speed) < 4 or not speed.max() > 0:
        return 0.0
    jerk = np.diff(speed, n=2) * fps**2
    duration_s = len(speed) / fps
    value = (jerk**2).sum() / fps * duration_s**3 / speed.max() ** 2
    return float(-np.log(value)) if value > 0 else 0.0


def _speed(tool: NDArray[np.float64]) -> NDArray[np.float64]:
    result: NDArray[np.float64] = np.linalg.norm(np.diff(tool, axis=0), axis=1) * FPS
    return result


def _is_inside(places: NDArray[np.float64], center: NDArray[np.float64], half: float) -> NDArray[np.bool_]:
    beside = np.abs(places[..., :2] - center[:2]).max(axis=-1) < half
    result: NDArray[np.bool_] = beside & (places[..., 2] < 0.04 + center[2])
    return result


def _drops(places: NDArray[np.float64], center: NDArray[np.float64], half: float) -> int:
    """Count how often a cube was lifted and came down again outside of the zone."""
    lifted = places[:, 2] > LIFTED_M
    down = ~lifted & (places[:, 2] < 0.6 * LIFTED_M)
    inside, count, is_up = _is_inside(places, center, half), 0, False
    for i in range(len(places)):
        if lifted[i]:
            is_up = True
        elif down[i] and is_up:
            is_up = False
            count += not inside[i]
    return count
