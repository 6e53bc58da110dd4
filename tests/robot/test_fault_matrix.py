"""The fault matrix, in virtual time."""

import math
import random

import pytest
from robot_bench import LOOKAHEAD_DEG, Bench, assert_slow_while_syncing, distance

from featherweight.robot.safety.mode import Mode


def cut_network(bench, alice):
    for link in bench.links:
        link.is_cut = True


def mend_network(bench, alice):
    for link in bench.links:
        link.is_cut = False


def pause_operator(bench, alice):
    alice.is_paused = True


def wake_operator(bench, alice):
    alice.is_paused = False


def silence_leader(bench, alice):
    alice.leader.is_silent = True


def wake_leader(bench, alice):
    alice.leader.is_silent = False


def send_nan(bench, alice):
    alice.leader.angles = [math.nan] * 6


def send_numbers(bench, alice):
    alice.leader.angles = None


def freeze_transport(bench, alice):
    bench.frozen_until_s = bench.now_s + 5.0


def nothing(bench, alice):
    pass


def unplug(bench, alice):
    bench.robot.kit.read_really, bench.robot.kit.read = bench.robot.kit.read, lambda now_us: b""
    bench.robot.kit.write_really, bench.robot.kit.write = bench.robot.kit.write, lambda now_us, data: None


def plug(bench, alice):
    bench.robot.kit.read, bench.robot.kit.write = bench.robot.kit.read_really, bench.robot.kit.write_really


def jump_ahead(bench, alice):
    bench.jump_ns = 3600 * 10**9


def jump_back(bench, alice):
    bench.jump_ns = -3600 * 10**9


def hurry(bench, alice, seconds):
    """Send the arm to a place more than 80 degrees away, and wait until it is moving."""
    alice.leader.angles = [-80.0 if bench.true_deg()[0] > 0 else 80.0, 0, 0, 0, -20, 0]
    bench.run(seconds)
    assert bench.active()


MATRIX = {
    "network lost": (cut_network, mend_network),
    "operator's process stopped": (pause_operator, wake_operator),
    "leader silent": (silence_leader, wake_leader),
    "NaN commands": (send_nan, send_numbers),
    "transport frozen for 5 s": (freeze_transport, nothing),
    "cable unplugged": (unplug, plug),
}


@pytest.mark.parametrize("fault", MATRIX)
@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(i, marks=pytest.mark.slow) for i in range(2, 10))])
def test_every_fault_holds_the_arm_at_once_and_ends_through_a_slow_sync(fault, seed):
    make, mend = MATRIX[fault]
    bench = Bench()
    alice = bench.operator()
    assert bench.run(10.0, bench.active)
    bench.run(random.Random(seed).uniform(1.0, 3.0))
    # The fault comes while the arm is on its way at full speed to a place far away.
    hurry(bench, alice, 0.2 + random.Random(seed).uniform(0.0, 0.15))
    bench.track.clear()

    make(bench, alice)
    start_s = bench.now_s
    held = bench.run(1.0, lambda: bench.side.controller.mode is Mode.HOLD)

    # 200 ms of silence, of the leader or of the kit, one step, and what was on its way.
    assert held and bench.now_s - start_s <= 0.25
    at_hold = bench.true_deg()
    if fault == "cable unplugged":
        at_hold = bench.track[0][2]
    bench.run(0.3)
    settled = bench.true_deg()
    assert distance(settled, at_hold) <= LOOKAHEAD_DEG
    bench.run(4.5)
    assert bench.true_deg() == settled, "the arm sways or creeps"

    mend(bench, alice)
    alice.leader.angles = None
    bench.track.clear()
    assert bench.run(20.0, bench.active)
    modes = [mode for _, mode, _ in bench.track]
    assert modes.index(Mode.SYNC) < modes.index(Mode.ACTIVE)
    assert_slow_while_syncing(bench.track)


@pytest.mark.parametrize("jump", [jump_ahead, jump_back])
def test_a_clock_that_jumps_by_an_hour_moves_nothing_wrong(jump):
    bench = Bench()
    alice = bench.operator()
    assert bench.run(10.0, bench.active)
    bench.run(2.0)

    jump(bench, alice)
    bench.run(5.0)

    assert bench.side.receiver.counters["clock"] >= 1
    assert bench.active()
    steps = [distance(a[2], b[2]) for a, b in zip(bench.track, bench.track[1:], strict=False)]
    assert max(steps) <= 2  # of 1.5 degrees at full speed
