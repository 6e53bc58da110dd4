"""The best whole degrees."""

import time

import numpy as np

from featherweight.robot.kinematics import IntegerSearch, search_integers, tool_point, wrist_point


def test_whole_degrees_from_a_search_are_better_than_rounded_ones():
    q_deg = np.random.default_rng(0).uniform(-90, 90, (2000, 5))
    exact, exact_wrist = tool_point(np.radians(q_deg)), wrist_point(np.radians(q_deg))

    searched = np.array([search_integers(angles) for angles in q_deg])
    searched_wrist = np.array([search_integers(angles, tool_m=0) for angles in q_deg])
    rounded_mm = 1e3 * np.linalg.norm(wrist_point(np.radians(np.round(q_deg))) - exact_wrist, axis=1)
    tool_mm = 1e3 * np.linalg.norm(tool_point(np.radians(searched)) - exact, axis=1)
    wrist_mm = 1e3 * np.linalg.norm(wrist_point(np.radians(searched_wrist)) - exact_wrist, axis=1)

    assert rounded_mm.mean() <= 1.27
    assert wrist_mm.mean() <= 1.0
    assert tool_mm.mean() <= 0.75 and tool_mm.max() <= 2.5
    assert np.abs(searched - q_deg).max() <= 1.5 and np.abs(searched).max() <= 90


def test_the_search_costs_less_than_a_tenth_of_a_millisecond():
    q_deg = np.random.default_rng(0).uniform(-90, 90, (300, 5))
    # Processor time, the best of three: other work on the machine only adds to it. Measured: 0.05 ms.
    times = []
    for _ in range(3):
        start = time.process_time()
        for angles in q_deg:
            search_integers(angles)
        times.append((time.process_time() - start) / len(q_deg))

    assert min(times) < 1e-4


def test_a_constant_wish_gives_constant_integers():
    search = IntegerSearch()
    wish = np.array([10.3, 20.6, -30.4, 5.5, -60.2])
    first = search(wish)

    jittered = [search(wish + np.random.default_rng(i).uniform(-0.03, 0.03, 5)) for i in range(50)]

    assert set(jittered) == {first}
    assert search(wish + 3) != first
