"""The controller, step by step, on a follower that a test holds in its hand."""

import math
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featherweight.errors import DeviceError
from featherweight.robot.kinematics import tool_point
from featherweight.robot.safety.config import SafetyConfig
from featherweight.robot.safety.controller import Controller
from featherweight.robot.safety.mode import Mode


class Hand:
    """A follower that jumps to its goals and remembers every call."""

    def __init__(self):
        self.q, self.is_streaming, self.epoch = (0.0,) * 6, True, 1
        self.goal, self.calls, self.is_stopped, self.breaks = None, [], False, False
        self.reported_s = None

    def silence_s(self, now_s):
        return 0.0 if self.reported_s is None else now_s - self.reported_s

    def reported_deg(self):
        if self.breaks:
            raise DeviceError("broken")
        return self.q

    def move(self, joints_deg, max_speed_deg_s, epoch, timeout_s, now_s):
        self.goal = joints_deg
        self.calls.append(("move", joints_deg, max_speed_deg_s, epoch, timeout_s))

    def hold(self):
        self.calls.append(("hold",))

    def stop(self):
        self.is_stopped = True

    def release_stop(self):
        self.is_stopped = False


def test_a_session_goes_from_idle_through_sync_to_active():
    hand = Hand()
    controller = Controller(hand)
    assert controller.tick(0.0) is Mode.IDLE and hand.calls == []

    controller.command((40, 0, 0, 0, 0, 0), 1.0)
    assert controller.tick(1.0) is Mode.SYNC
    assert hand.calls[-1] == ("move", (40, 0, 0, 0, 0, 0), 30.0, 1, pytest.approx(0.23))
    hand.q = (36.0, 0, 0, 0, 0, 0)
    assert controller.tick(1.1) is Mode.ACTIVE
    assert hand.calls[-1][2] == 80.0


@pytest.mark.parametrize(
    "doubt",
    [
        lambda h: setattr(h, "is_streaming", False),
        lambda h: setattr(h, "epoch", 2),
        lambda h: setattr(h, "breaks", True),
    ],
)
def test_every_doubt_about_the_robot_holds_it_once(doubt):
    hand = Hand()
    controller = Controller(hand)
    controller.command((1,) * 6, 1.0)
    controller.tick(1.0)
    controller.tick(1.01)
    hand.calls.clear()

    doubt(hand)
    assert controller.tick(1.02) is Mode.HOLD
    assert hand.calls == [("hold",)]
    hand.is_streaming, hand.breaks = True, False
    controller.command((1,) * 6, 1.03)
    assert controller.tick(1.03) is Mode.SYNC


def test_a_robot_that_says_nothing_for_200_ms_is_held_before_its_link_is_lost():
    hand = Hand()
    controller = Controller(hand)
    for now_s in (1.0, 1.1):
        hand.reported_s = now_s
        controller.command((1,) * 6, now_s)
        controller.tick(now_s)
    controller.command((1,) * 6, 1.3)
    assert controller.tick(1.3) is Mode.ACTIVE
    controller.command((1,) * 6, 1.31)
    assert controller.tick(1.31) is Mode.HOLD and hand.is_streaming
    controller.command((1,) * 6, 1.4)
    assert controller.tick(1.4) is Mode.HOLD
    hand.reported_s = 1.5
    controller.command((1,) * 6, 1.5)
    assert controller.tick(1.5) is Mode.SYNC


def test_silence_holds_after_200_ms_and_a_clock_that_goes_back_holds_too():
    hand = Hand()
    controller = Controller(hand)
    controller.command((1,) * 6, 1.0)
    controller.tick(1.0)
    assert controller.tick(1.2) is Mode.ACTIVE
    assert controller.tick(1.201) is Mode.HOLD
    controller.command((1,) * 6, 2.0)
    assert controller.tick(2.0) is Mode.SYNC
    assert controller.tick(1.5) is Mode.HOLD


@pytest.mark.parametrize("angles", [(math.nan,) * 6, (0, 0, 0, 0, 0, math.inf), (0,) * 5, ()])
def test_a_command_that_is_no_command_does_not_keep_the_arm_going(angles):
    hand = Hand()
    controller = Controller(hand)
    controller.command((1,) * 6, 1.0)
    controller.tick(1.0)
    for i in range(30):
        assert not controller.command(angles, 1.0 + i / 60)
        controller.tick(1.0 + i / 60)

    assert controller.mode is Mode.HOLD and controller.counters["not finite"] == 30
    assert hand.goal == (1,) * 6


def test_limits_clamp_and_say_so():
    hand = Hand()
    controller = Controller(hand, SafetyConfig(max_relative_target=10, guard=False), [(-20, 5)] + [(-90, 90)] * 5)
    controller.command((50, -50, 200, 0, 0, 0), 1.0)
    controller.tick(1.0)

    assert hand.goal == (5, -10, 10, 0, 0, 0) and controller.limits_hit


def test_a_stop_acts_at_once_from_another_thread_and_a_reset_ends_only_the_stop_it_saw():
    hand = Hand()
    controller = Controller(hand)
    controller.command((1,) * 6, 1.0)
    controller.tick(1.0)
    thread = threading.Thread(target=controller.stop)
    thread.start()
    thread.join()
    assert hand.is_stopped  # before any step
    assert controller.tick(1.01) is Mode.ESTOP
    controller.command((1,) * 6, 1.02)
    assert controller.tick(1.02) is Mode.ESTOP

    controller.request_reset()
    controller.stop("again")
    assert controller.tick(1.03) is Mode.ESTOP and hand.is_stopped
    controller.request_reset()
    assert controller.tick(1.04) is Mode.IDLE and not hand.is_stopped
    assert controller.tick(1.05) is Mode.IDLE  # commands from before the stop are forgotten
    controller.command((1,) * 6, 1.06)
    assert controller.tick(1.06) is Mode.SYNC


def test_a_reset_without_a_stop_does_nothing():
    controller = Controller(Hand())
    controller.request_reset()
    assert controller.tick(0.0) is Mode.IDLE


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.floats(allow_nan=True), min_size=6, max_size=6), min_size=1, max_size=20),
    st.lists(st.floats(0.001, 0.3), min_size=20, max_size=20),
)
def test_whatever_is_commanded_the_goal_is_finite_and_in_range(commands, pauses):
    hand = Hand()
    controller = Controller(hand)
    now_s = 1.0
    for angles, pause_s in zip(commands, pauses, strict=False):
        controller.command(angles, now_s)
        controller.tick(now_s)
        now_s += pause_s
        if hand.goal is not None:
            assert all(math.isfinite(angle) and abs(angle) <= 90 for angle in hand.goal)
            hand.q = hand.goal


def test_a_refused_way_leaves_the_goal_as_it_was_and_counts():
    hand = Hand()
    controller = Controller(hand)
    controller.command((1,) * 6, 1.0)
    controller.tick(1.0)
    hand.q = (1.0,) * 6
    controller.command((1, 90, 1, 1, 1, 1), 1.1)

    assert controller.tick(1.1) is Mode.ACTIVE and hand.goal == (1,) * 6
    assert controller.counters["guard"] == 1 and controller.limits_hit
    controller.command((2,) * 6, 1.2)
    controller.tick(1.2)
    assert hand.goal == (2,) * 6 and controller.modes.reason == ""


def test_whole_degrees_may_be_searched_for():
    hand, wish = Hand(), (10.4, 10.4, 10.4, 10.4, -30.4, 10.4)
    controller = Controller(hand, SafetyConfig(integer="search"))
    controller.command(wish, 1.0)
    controller.tick(1.0)
    point, searched, rounded = (
        tool_point(np.radians(angles[:5])) for angles in (wish, hand.goal, [round(angle) for angle in wish])
    )

    assert all(angle == round(angle) for angle in hand.goal[:5]) and hand.goal[5] == 10.4
    assert np.linalg.norm(searched - point) < np.linalg.norm(rounded - point)
