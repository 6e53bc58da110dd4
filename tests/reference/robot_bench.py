"""Whole sessions in virtual time: operator, bad network, robot's side, driver, firmware."""

import math

from featherweight.robot.contract import Teleoperator, keyed_angles
from featherweight.robot.emulator.emulated_kit import EmulatedKit
from featherweight.robot.network import Impairment, InprocBroker, Topics
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


def assert_slow_while_syncing(track):
    """In SYNC no joint goes faster than 30 degrees a second: in half a second at most 15, and one by rounding."""
    syncing = [(t, q) for t, mode, q in track if mode is Mode.SYNC]
    for (t0, q0), (t1, q1) in zip(syncing, syncing[30:], strict=False):
        if t1 - t0 < 0.55:
            assert distance(q0, q1) <= 30 * (t1 - t0) + 2
