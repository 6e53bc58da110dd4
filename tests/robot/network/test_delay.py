"""Delay without a common clock."""

import random

import pytest

from featherweight.robot.network import ClockEstimate

MS = 1_000_000


def simulate_clock(delay_ms, jitter_ms, loss, offset_ns, seconds=20.0, seed=0, asymmetry_ms=0.0):
    """Let two clocks exchange frames; return (estimate, worst round-trip error, worst age error) in ns."""
    chance = random.Random(seed)
    estimate, worst_rtt, worst_age = ClockEstimate(), 0, 0
    now = 1_000_000_000
    for _ in range(int(seconds * 60)):
        now += 16_666_667
        there = round((delay_ms + asymmetry_ms + chance.uniform(-jitter_ms, jitter_ms)) * MS)
        back = round((delay_ms + chance.uniform(-jitter_ms, jitter_ms)) * MS)
        hold = round(chance.uniform(0, 16) * MS)
        if chance.random() < loss:
            continue
        # We sent at `now`; the other side got it, held it and sent its own frame, which came back.
        sent_other = now + there + hold + offset_ns
        came = now + there + hold + back
        round_trip = estimate.add(came, sent_other, now, hold // 1000)
        worst_rtt = max(worst_rtt, abs(round_trip - there - back))
        age = estimate.age_ns(came, sent_other)
        if age is not None:
            worst_age = max(worst_age, abs(age - back) - estimate.uncertainty_ns)
    return estimate, worst_rtt, worst_age


@pytest.mark.parametrize("offset_ns", [0, 3_600_000_000_000, -(10**15)])
@pytest.mark.parametrize("asymmetry_ms", [0.0, 40.0])
def test_round_trips_and_ages_are_right_within_their_uncertainty_whatever_the_clocks(offset_ns, asymmetry_ms):
    estimate, worst_rtt, worst_age = simulate_clock(100, 30, 0.05, offset_ns, asymmetry_ms=asymmetry_ms)

    assert estimate.is_known and worst_rtt < 2 * MS
    assert worst_age <= 0


def test_frames_that_echo_nothing_of_ours_tell_nothing():
    clock = ClockEstimate()

    assert clock.add(10**10, 5, 0, 0) is None and clock.add(10**10, 5, 2 * 10**10, 0) is None
    assert clock.add(2 * 10**10, 5, 10**9, 0) is None and clock.add(10**10, 5, 10**10 - 1000, 100) is None
    assert not clock.is_known and clock.age_ns(10**10, 5) is None
