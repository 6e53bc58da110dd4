"""The playout buffer: even motion from uneven arrivals, nothing added where arrivals are even."""

import math

import numpy as np
from robot_bench import Bench

from featherweight.robot.network import Impairment
from featherweight.robot.network.impaired import ImpairedQueue
from featherweight.robot.network.playout import PlayoutBuffer
from featherweight.robot.safety.mode import Mode

MS = 1_000_000
PERIOD_NS = 16_666_667


def play(delay_ms, jitter_ms, max_delay_ms, seconds=30):
    """Send a sine at 60 Hz over a bad network and play it; return (angles, wanted angles, delays in ms) of the end."""
    queue = ImpairedQueue(Impairment(delay_s=delay_ms / 1000, jitter_s=jitter_ms / 1000, seed=3))
    buffer = PlayoutBuffer(max_delay_ms, gap_ms=200)
    sent, played, delays = {}, [], []

    def leader(time_ns):
        return 40 * math.sin(2 * time_ns / 1e9)

    for i in range(int(seconds * 60)):
        now_ns = i * PERIOD_NS
        sent[str(i)] = now_ns
        queue.push(now_ns / 1e9, str(i), b"")
        for name, _ in queue.pop(now_ns / 1e9):
            buffer.put(now_ns, now_ns - sent[name], (leader(sent[name]),) + (0.0,) * 5)
        angles = buffer.play(now_ns)
        if angles is not None and i > seconds * 40:
            played.append((angles[0], leader(now_ns - buffer.delay_ms * MS)))
            delays.append(buffer.delay_ms)
    return np.array(played), np.array(delays)


def roughness(angles):
    """Root mean square of the change of speed from step to step."""
    return float(np.sqrt(np.mean(np.diff(angles, n=2) ** 2)))


def test_uneven_arrivals_are_played_evenly():
    at_once, _ = play(75, 40, max_delay_ms=0)
    buffered, delays = play(75, 40, max_delay_ms=150)
    smooth = roughness(buffered[:, 1])

    # Played at once, motion stops and jumps; buffered, it is the leader's motion of some time ago but for the late 5 %.
    assert roughness(at_once[:, 0]) > 8 * smooth and roughness(buffered[:, 0]) < 2.5 * smooth
    assert np.abs(buffered[:, 0] - buffered[:, 1]).max() < 2.5
    # 75 +- 40 ms, seen in steps of 16.7 ms: 95 of 100 take at most 111 ms and one step.
    assert 100 < delays.min() and delays.max() < 130


def test_the_delay_has_a_bound():
    _, delays = play(75, 40, max_delay_ms=20)
    assert delays.max() < 75 + 20  # 5 of 100 commands take less than the mean way of 75 ms


def test_even_arrivals_wait_for_nothing():
    played, delays = play(75, 2, max_delay_ms=150)
    assert delays.max() == 0
    buffer = PlayoutBuffer(150, gap_ms=200)
    for i in range(10):
        buffer.put(i * PERIOD_NS, MS, (float(i),) * 6)
        assert buffer.play(i * PERIOD_NS) == (float(i),) * 6


def test_nothing_from_before_a_gap_a_clear_or_a_jump_is_played():
    buffer = PlayoutBuffer(150, gap_ms=200)
    assert buffer.play(0) is None
    for i in range(60):
        buffer.put(i * PERIOD_NS, (10 + 60 * (i % 2)) * MS, (1.0,) * 6)
        buffer.play(i * PERIOD_NS)
    assert buffer.delay_ms > 20
    buffer.put(60 * PERIOD_NS + 300 * MS, 10 * MS, (5.0,) * 6)
    assert buffer.play(60 * PERIOD_NS + 300 * MS) == (5.0,) * 6
    buffer.put(61 * PERIOD_NS + 300 * MS, 1000 * MS, (7.0,) * 6)  # sent before the last one: the clock jumped
    assert buffer.play(61 * PERIOD_NS + 300 * MS) == (7.0,) * 6
    buffer.clear()
    assert buffer.play(62 * PERIOD_NS + 300 * MS) is None and buffer.came_ns is None


def test_a_session_over_a_jittery_network_buffers_and_still_holds_within_250_ms():
    bad = Impairment(delay_s=0.06, jitter_s=0.04, seed=4)
    bench = Bench(bad, bad)
    alice = bench.operator()
    assert bench.run(20.0, bench.active)
    bench.run(8.0)
    assert 40 < bench.side.playout.delay_ms < 150 and bench.active()

    bench.links[0].is_cut = bench.links[1].is_cut = True
    start_s = bench.now_s
    assert bench.run(1.0, lambda: bench.side.controller.mode is Mode.HOLD)
    assert bench.now_s - start_s <= 0.25
    assert bench.side.playout.came_ns is None and alice.counters["faulty leader"] == 0
