"""Whole sessions in virtual time: operator, bad network, robot's side, driver, firmware. The fault matrix and an
hour."""

import math
import random
import tracemalloc

import pytest

from featherweight.robot.contract import Teleoperator, keyed_angles
from featherweight.robot.emulator.emulated_kit import EmulatedKit
from featherweight.robot.network import CommandFrame, Impairment, InprocBroker, Topics
from featherweight.robot.network.follower_side import FollowerSide
from featherweight.robot.network.impaired import ImpairedQueue
from featherweight.robot.network.operator_side import OperatorSide
from featherweight.robot.safety.mode import Mode
from featherweight.robot.virtual_robot import VirtualRobot

TOPICS = Topics("lab1", "arm1")
LOOKAHEAD_DEG = 3
STEP_S = 1 / 60


class Waving(Teleoperator):
    """A leader that waves in virtual time; `angles` may be replaced."""

    name = id = "waving"
    is_connected = True

    def __init__(self, bench):
        self.bench, self.angles = bench, None
        self.amplitude, self.is_silent = 40.0, False

    def connect(self, calibrate=True):
        pass

    def disconnect(self):
        pass

    def get_action(self):
        if self.is_silent:
            return None
        t = self.bench.now_s
        angles = self.angles or [self.amplitude * math.sin(0.8 * t + i) / (1 + i) for i in range(6)]
        return dict(zip(keyed_angles([0] * 6), angles, strict=True))


class Delayed:
    """A transport whose messages go through an impaired queue in virtual time."""

    def __init__(self, bench, transport, impairment):
        self.bench, self.inner, self.queue = bench, transport, ImpairedQueue(impairment)
        self.is_cut = False

    def publish(self, topic, message):
        self.queue.push(self.bench.now_s, topic, message)

    def deliver(self):
        for topic, message in self.queue.pop(self.bench.now_s):
            if not self.is_cut:
                self.inner.publish(topic, message)

    def __getattr__(self, name):
        return getattr(self.inner, name)


class Bench:
    """One robot and its operators."""

    def __init__(self, there=None, back=None, kit=None):
        self.now_s = 1.0
        self.robot = VirtualRobot(kit or EmulatedKit(boot_s=0.0))
        self.robot.advance(self.now_s)
        self.broker = InprocBroker("lab1")
        self.links = []
        self.operators = []
        self.jump_ns = 0
        robot_link = self.link("arm1", "robot", back)
        self.there = there
        self.side = FollowerSide(self.robot, robot_link, TOPICS, clock_ns=lambda: round(self.now_s * 1e9))
        self.frozen_until_s = 0.0
        self.track = []

    def link(self, name, role, impairment):
        link = Delayed(self, self.broker.join(name, role), impairment or Impairment(delay_s=0.005, jitter_s=0.002))
        self.links.append(link)
        return link

    def operator(self, name="alice", role="operator"):
        leader = Waving(self)
        link = self.link(name, role, self.there)
        # Her clock began at another time, and may jump.
        clock = lambda: round(self.now_s * 1e9) + 10**14 + self.jump_ns  # noqa: E731
        side = OperatorSide(leader, link, TOPICS, name, role == "instructor", clock_ns=clock)
        side.leader, side.link, side.is_paused = leader, link, False
        self.operators.append(side)
        return side

    def run(self, seconds, until=None):
        end_s = self.now_s + seconds
        while self.now_s < end_s:
            self.now_s += STEP_S
            self.robot.advance(self.now_s)
            if self.now_s >= self.frozen_until_s:
                for link in self.links:
                    link.deliver()
            for operator in self.operators:
                if not operator.is_paused:
                    operator.step()
            if self.now_s >= self.frozen_until_s:
                for link in self.links:
                    link.deliver()
            self.side.step()
            self.track.append((self.now_s, self.side.controller.mode, tuple(self.robot.kit.firmware.current_deg)))
            if until is not None and until():
                return True
        return False

    def active(self):
        return self.side.controller.mode is Mode.ACTIVE

    def true_deg(self):
        return tuple(self.robot.kit.firmware.current_deg)


def distance(a, b):
    return max(abs(x - y) for x, y in zip(a, b, strict=True))


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


def assert_slow_while_syncing(track):
    """In SYNC no joint goes faster than 30 degrees a second: in half a second at most 15, and one by rounding."""
    syncing = [(t, q) for t, mode, q in track if mode is Mode.SYNC]
    for (t0, q0), (t1, q1) in zip(syncing, syncing[30:], strict=False):
        if t1 - t0 < 0.55:
            assert distance(q0, q1) <= 30 * (t1 - t0) + 2


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


def test_an_observer_can_stop_nothing_and_move_nothing():
    bench = Bench()
    bench.operator()
    assert bench.run(10.0, bench.active)
    eve = bench.broker.join("eve", "observer")

    eve.publish(TOPICS.ctl, b'{"type": "stop"}')
    eve.publish(TOPICS.cmd, CommandFrame(1, 1, 0, 0, 0, (0.0,) * 6).encode())
    bench.run(1.0)

    assert bench.active() and bench.broker.refused == 2
    assert bench.side.receiver.counters["lease"] == 0


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
