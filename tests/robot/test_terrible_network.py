"""Teleoperation over a terrible network, in accelerated time."""

import tracemalloc

import pytest
from robot_bench import Bench

from featherweight.robot.network import Impairment


def soak(minutes, minute_s=60.0, watches_memory=True):
    """Teleoperate over a terrible network in accelerated time; check every accepted command on the way."""
    bad = {"delay_s": 0.15, "jitter_s": 0.06, "loss": 0.1, "reorder": 0.05}
    bench = Bench(Impairment(**bad, seed=1), Impairment(**bad, seed=2))
    bench.operator()
    receiver = bench.side.receiver
    sequences, ages, sizes = [], [], []
    receive = receiver.receive

    def check(data, now_ns):
        angles = receive(data, now_ns)
        if angles is not None:
            # The true age: both clocks are the bench's, 10**14 apart.
            true_age_ns = now_ns - (receiver.accepted.sent_ns - 10**14)
            ages.append(true_age_ns - receiver.clock.uncertainty_ns)
            sequences.append((receiver.accepted.session, receiver.accepted.sequence))
        return angles

    receiver.receive = check
    if watches_memory:
        tracemalloc.start()
    for _ in range(int(minutes)):
        bench.run(minute_s)
        by_session = {}
        for session, sequence in sequences:
            assert sequence > by_session.get(session, -1), "an accepted sequence decreased"
            by_session[session] = sequence
        assert max(ages) <= 250_000_000
        sequences.clear()
        bench.track.clear()
        sizes.append(tracemalloc.get_traced_memory()[0])  # 0 where it is not watched
        accepted = len(ages)
        ages.clear()
        assert accepted > 0.7 * 60 * minute_s  # of 60 a second; 10 % are lost and 5 % overtaken
    tracemalloc.stop()
    return bench, sizes


def test_seconds_of_a_terrible_network_accept_nothing_old_and_nothing_twice():
    bench, _ = soak(1, minute_s=15.0, watches_memory=False)

    assert bench.side.receiver.counters["late"] > 12
    assert bench.side.counters["internal errors"] == 0


@pytest.mark.slow
def test_an_hour_of_a_terrible_network_accepts_nothing_old_and_keeps_memory_flat():
    bench, sizes = soak(60)

    # The first minutes fill bounded windows; afterwards nothing grows by more than noise.
    assert max(sizes[10:]) < 1.1 * max(sizes[4:10]) + 50_000
    assert bench.side.counters["internal errors"] == 0
