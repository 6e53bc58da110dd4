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


def score_log(records: Sequence[Record]) -> Score:
    """Score the records of one run."""
    start, frames, end = records[0], [r for r in records if r["kind"] == "frame"], records[-1]
    cubes = int(start["cubes"])
    times = np.array([frame["t"] for frame in frames])
    places = np.array([frame["cubes"] for frame in frames]).reshape(len(frames), cubes, 3)
    center, half = np.array(start["bin"]), float(start["half"])
    placed_at = [_placed_at(times, places[:, i], center, half, frames) for i in range(cubes)]
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
    beside = np.abs(places[:, :2] - center[:2]).max(axis=1) < half
    result: NDArray[np.bool_] = beside & (places[:, 2] < 0.04 + center[2])
    return result


def _placed_at(
    times: NDArray[np.float64],
    places: NDArray[np.float64],
    center: NDArray[np.float64],
    half: float,
    frames: Sequence[Record],
) -> float | None:
    """Return when a cube had lain still in the zone for a second, let go by the gripper, for the first time."""
    if len(times) < 2:
        return None
    speed = np.concatenate([[np.inf], np.linalg.norm(np.diff(places, axis=0), axis=1) / np.diff(times)])
    is_free = np.array([frame["gripper"] > 0 for frame in frames])
    good = _is_inside(places, center, half) & (speed < STILL_M_S) & is_free
    since: float | None = None
    for time_s, is_good in zip(times, good, strict=True):
        since = (time_s if since is None else since) if is_good else None
        if since is not None and time_s - since >= PLACED_S - 1e-6:
            return float(time_s)
    return None


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
