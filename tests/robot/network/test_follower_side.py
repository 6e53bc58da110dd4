"""Sessions in virtual time: operators, instructors, stops, floods, restarts, the guard."""

import random
import threading
import time

import pytest
from robot_bench import LOOKAHEAD_DEG, TOPICS, Bench, assert_slow_while_syncing, distance

from featherweight.robot.network import CommandFrame, Impairment
from featherweight.robot.safety.mode import Mode


def test_a_second_operator_moves_nothing_and_the_first_notices_nothing():
    bench = Bench()
    alice = bench.operator("alice")
    assert bench.run(10.0, bench.active)
    bob = bench.operator("bob")
    bob.leader.angles = [90.0] * 6
    bench.run(5.0)

    assert bench.side.lease.holder.name == "alice" and alice.has_robot and not bob.has_robot
    assert bench.side.receiver.counters["lease"] > 200 and bench.side.counters["refused operators"] > 5
    assert distance(bench.true_deg(), [0] * 6) <= 45
    assert bench.active()


def test_an_instructor_takes_over_through_sync_and_gives_back():
    bench = Bench()
    alice = bench.operator("alice")
    assert bench.run(10.0, bench.active)
    teacher = bench.operator("teacher", "instructor")
    teacher.leader.angles = [30.0, 10, 0, 0, 0, 0]
    bench.track.clear()

    bench.run(6.0)
    assert teacher.has_robot and not alice.has_robot and bench.active()
    assert bench.true_deg() == (30, 10, 0, 0, 0, 0)
    assert Mode.SYNC in [mode for _, mode, _ in bench.track]
    assert_slow_while_syncing(bench.track)

    teacher.is_paused = True
    teacher.ask("release")
    bench.run(6.0)
    assert alice.has_robot and bench.active()


def test_a_flood_of_commands_changes_nothing_but_counters():
    bench = Bench()
    alice = bench.operator()
    assert bench.run(10.0, bench.active)
    wild = random.Random(0)

    def flood():
        for _ in range(10):
            message = CommandFrame(alice.session, 1, 0, 0, 0, tuple(wild.uniform(-90, 90) for _ in range(6))).encode()
            alice.link.inner.publish(TOPICS.cmd, wild.choice([message, message[:-1], bytes(72), b""]))
        return False

    bench.run(5.0, flood)

    assert bench.active() and bench.side.receiver.counters["late"] > 500
    steps = [distance(a[2], b[2]) for a, b in zip(bench.track, bench.track[1:], strict=False)]
    assert max(steps) <= 2


def test_an_emergency_stop_of_an_operator_needs_a_reset_and_a_sync():
    bench = Bench()
    alice = bench.operator()
    assert bench.run(10.0, bench.active)
    bench.run(1.0)

    alice.ask("stop")
    assert bench.run(0.3, lambda: bench.side.controller.mode is Mode.ESTOP)
    at_stop = bench.true_deg()
    bench.run(3.0)
    settled = bench.true_deg()
    assert distance(settled, at_stop) <= LOOKAHEAD_DEG
    bench.run(3.0)
    assert bench.true_deg() == settled and bench.side.controller.mode is Mode.ESTOP

    bench.track.clear()
    alice.ask("reset")
    assert bench.run(20.0, bench.active)
    assert_slow_while_syncing(bench.track)


@pytest.mark.parametrize(
    "message",
    [b"", b"{", b"[]", b"3", b'{"type": 5}', b'{"type": "request"}', b"\xff\xfe", b'{"type":"request","session":"x"}'],
)
def test_malformed_requests_are_counted_and_harmless(message):
    bench = Bench()
    bench.operator()
    assert bench.run(10.0, bench.active)
    mallory = bench.broker.join("mallory", "operator")

    mallory.publish(TOPICS.ctl, message)
    bench.run(0.5)

    assert bench.active()


def test_a_restarted_kit_is_held_and_followed_again_through_sync():
    bench = Bench()
    alice = bench.operator()
    alice.leader.angles = [50.0, 0, 0, 0, 0, 0]
    assert bench.run(10.0, lambda: bench.true_deg()[0] == 50)
    bench.track.clear()

    bench.robot.kit.firmware.reset(bench.robot.kit.firmware.now_us)
    bench.run(4.0)

    modes = [mode for _, mode, _ in bench.track]
    assert Mode.HOLD in modes and bench.active() and bench.true_deg()[0] == 50
    assert_slow_while_syncing(bench.track[15:])


def test_the_guard_keeps_the_arm_out_of_the_table():
    from featherweight.robot.safety.guard import clearance

    bench = Bench()
    alice = bench.operator()
    alice.leader.angles = [0.0, 10, 0, 0, -60, 0]
    assert bench.run(10.0, bench.active)
    for pose in ([0.0, 80, 0, 0, -70, 0], [40.0, 90, -40, 0, -90, 0]):
        alice.leader.angles = pose
        bench.run(3.0)

    assert bench.side.controller.counters["guard"] > 0
    lowest = min(float(clearance(list(q))) for _, _, q in bench.track)
    # The straight way is looked at each 5 degrees, and whole degrees lie up to half a degree beside it.
    assert lowest > -0.004


def test_a_pause_holds_at_once_and_what_was_sent_before_it_no_longer_counts():
    bench = Bench(there=Impairment(delay_s=0.06, jitter_s=0.03, reorder=0.2))
    alice = bench.operator("alice")
    assert bench.run(10.0, bench.active)
    bench.run(1.0)
    alice.leader.is_silent = True
    bench.run(1 / 60)
    alice.ask("pause")
    bench.track.clear()
    bench.run(0.5)

    modes = [mode for _, mode, _ in bench.track]
    held = modes.index(Mode.HOLD)
    assert held <= 9  # 150 ms, where silence alone needs 200 after the last command that came
    assert set(modes[held:]) == {Mode.HOLD}  # mutation: without the number in the pause, late commands start SYNC
    assert bench.side.controller.modes.reason == "the operator let go"


def test_a_pause_of_somebody_else_moves_and_holds_nothing():
    bench = Bench()
    bench.operator("alice")
    assert bench.run(10.0, bench.active)
    bench.operator("bob").ask("pause")
    bench.run(0.5)
    assert bench.active()


def test_after_a_flood_of_commands_the_next_step_is_no_later_than_before():
    """Each command asks for a step at once; the loop that watches the deadlines must not pause for them afterwards."""
    bench, stop, steps = Bench(), threading.Event(), []
    link = bench.broker.join("alice", "operator")
    thread = threading.Thread(target=bench.side.run, args=(stop, 60.0, lambda side: steps.append(time.monotonic())))
    thread.start()
    for _ in range(300):
        link.publish(TOPICS.cmd, b"")
        time.sleep(0.001)
    flooded = len(steps)
    time.sleep(0.3)
    stop.set()
    thread.join()
    assert flooded > 60  # steps for commands, beside the 60 a second; mutation: each delays the next by a period
    assert len(steps) - flooded >= 5
