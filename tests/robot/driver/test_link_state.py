"""States and look-ahead of the link, in virtual time, against the firmware under every fault."""

import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from robot_moves import move

from featherweight.robot.driver.link_state import LinkCore, LinkState
from featherweight.robot.emulator.emulated_kit import EmulatedKit
from featherweight.robot.emulator.faults import FaultConfig
from featherweight.robot.protocol import Status, format_status
from featherweight.robot.virtual_robot import VirtualRobot

COMMAND = re.compile(rb"(V )?-?\d{1,2}( -?\d{1,2}){5}\n")
"""A command, or the one line that offers the checked protocol, which the published firmware reads as a command, too."""


def wander(robot, seconds, seed):
    """Set random goals, holds and stops for a while."""
    chance = random.Random(seed)
    end_s = robot.now_s + seconds
    while robot.now_s < end_s:
        robot.advance(robot.now_s + chance.uniform(0.01, 0.3))
        kind = chance.random()
        if kind < 0.7:
            move(robot, [chance.uniform(-120, 120) for _ in range(6)], chance.choice([None, 30, 80]))
        elif kind < 0.8:
            robot.hold()
        elif kind < 0.9:
            robot.stop()
        else:
            robot.release_stop()


FAULTS = [FaultConfig(**{name: 0.05, "seed": 1}) for name in FaultConfig.model_fields if name not in ("seed", "reset")]


@pytest.mark.parametrize("faults", FAULTS, ids=str)
def test_nothing_forbidden_is_ever_written_under_any_fault(faults):
    robot = VirtualRobot(EmulatedKit(boot_s=0.2, faults=faults))
    robot.sent = []
    reported = {}
    received = robot.core.received

    def remember(now_s, data):
        out = received(now_s, data)
        if robot.core.newest is not None:
            reported[robot.core.statistics.lines] = robot.core.newest.status.q_deg
        return out

    robot.core.received = remember

    wander(robot, seconds=10.0, seed=3)

    lines = [line for line, _, _ in robot.sent]
    assert len(lines) > 100
    assert lines[0] >= 1, "a command before the first status line"
    assert len(set(lines)) == len(lines), "two commands for one status line"
    for line, _, command in robot.sent:
        assert COMMAND.fullmatch(command)
        target = [int(word) for word in command.removeprefix(b"V ").split()]
        assert max(abs(t - q) for t, q in zip(target, reported[line], strict=True)) <= 3, "beyond the look-ahead"


@settings(max_examples=50, deadline=None)
@given(st.lists(st.binary(max_size=300), max_size=30))
def test_no_bytes_crash_the_link_and_it_streams_within_100_ms_of_clean_lines(pieces):
    core = LinkCore()
    core.opened(0.0)
    now_s = 0.0
    for piece in pieces:
        now_s += 0.02
        core.received(now_s, piece)
        core.check_silence(now_s)
    start_s = now_s
    while core.state is not LinkState.STREAMING or core.newest.status.pots[0] != 77:
        now_s += 0.0114
        core.received(now_s, format_status(Status((5,) * 6, (77,) * 6, (1,) * 5)))
        assert now_s - start_s <= 0.1


def test_the_first_command_after_every_opening_is_what_the_kit_reported():
    robot = VirtualRobot(EmulatedKit(boot_s=0.0, resets_on_open=False))
    robot.advance(0.5)
    for _ in range(3):
        move(robot, [40, -40, 0, 0, 0, 0])
        robot.advance(robot.now_s + 1.0)
        robot.core.failed(robot.now_s, "cable")
        robot._open()
        robot.sent = []
        robot.advance(robot.now_s + 0.3)

        reported = robot.reported_deg()
        lines = [out for _, _, out in robot.sent]
        assert lines[0].startswith(b"V ") and not any(b"V" in out for out in lines[1:])
        assert all(tuple(map(int, out.removeprefix(b"V ").split())) == reported for out in lines)


@pytest.mark.parametrize(("lookahead", "least", "most"), [(2, 50, 62), (3, 84, 89), (5, 84, 89)])
def test_the_speed_follows_from_the_lookahead(lookahead, least, most):
    # Three lines pass from a command until its effect is reported, so full speed needs a look-ahead of 3; 2 gives 58.
    robot = VirtualRobot(lookahead_deg=lookahead)
    robot.core.sync_speed_deg_s = 90
    robot.advance(0.2)
    move(robot, [-90, 0, 0, 0, 0, 0])
    robot.advance(3.0)
    start_s = robot.now_s
    robot.core._starts_softly = False
    move(robot, [60, 0, 0, 0, 0, 0])
    robot.advance(start_s + 1.2)

    speed = (robot.reported_deg()[0] + 90) / (robot.now_s - start_s)

    assert least <= speed <= most


def test_auto_lookahead_is_measured_from_a_command_until_its_effect():
    robot = VirtualRobot(lookahead_deg=None)
    robot.advance(0.5)
    move(robot, [10, 0, 0, 0, 0, 0])
    robot.advance(1.5)

    assert robot.core.statistics.echo_lines == 3 and robot.core.target.lookahead_deg == 3


def test_a_freeze_is_latched_once_and_the_arm_does_not_sway():
    robot = VirtualRobot()
    robot.core.sync_speed_deg_s = 90
    robot.advance(0.2)
    move(robot, [80, -80, 60, 0, 0, 0])
    robot.advance(0.6)
    before = robot.reported_deg()
    robot.sent = []

    for _ in range(60):
        robot.hold()  # a controller may ask for it again and again
        robot.advance(robot.now_s + 1 / 60)

    commands = {out for _, _, out in robot.sent[2:]}
    assert len(commands) == 1
    track = [robot.kit.firmware.current_deg.copy()]
    robot.advance(robot.now_s + 2.0)
    assert robot.kit.firmware.current_deg == track[0]
    assert max(abs(a - b) for a, b in zip(track[0], before, strict=True)) <= 3


def test_a_goal_that_nobody_renews_freezes_the_arm():
    robot = VirtualRobot()
    robot.core.sync_speed_deg_s = 90
    robot.advance(0.2)
    move(robot, [80, 0, 0, 0, 0, 0], timeout_s=0.2)
    robot.advance(3.0)

    assert robot.core.is_frozen and robot.core.statistics.expired_goals == 1
    assert robot.reported_deg()[0] <= 0.2 * 88 + 4


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_goal_that_is_not_finite_freezes_the_arm(bad):
    robot = VirtualRobot()
    robot.core.sync_speed_deg_s = 90
    robot.advance(0.2)
    move(robot, [80, 0, 0, 0, 0, 0])
    robot.advance(0.6)
    before = robot.reported_deg()
    move(robot, [bad] * 6)
    robot.advance(2.0)

    assert robot.core.is_frozen and 0 < before[0] <= robot.reported_deg()[0] <= before[0] + 3


def test_an_emergency_stop_outlives_goals_and_reopening_until_it_is_released():
    robot = VirtualRobot(EmulatedKit(boot_s=0.0, resets_on_open=False))
    robot.advance(0.2)
    robot.stop()
    for _ in range(3):
        move(robot, [50] * 6)
        robot.advance(robot.now_s + 0.5)
    robot._open()
    robot.advance(robot.now_s + 0.2)
    move(robot, [50] * 6)
    robot.advance(robot.now_s + 0.5)
    assert robot.reported_deg() == (0,) * 6

    robot.release_stop()
    robot.advance(robot.now_s + 0.2)
    assert robot.reported_deg() == (0,) * 6
    move(robot, [5] * 6)
    robot.advance(robot.now_s + 1.0)
    assert robot.reported_deg() == (5,) * 6


def test_a_flipped_bit_that_makes_another_angle_moves_nothing():
    core = LinkCore()
    core.opened(0.0)
    zero, wrong = Status((40, 0, 0, 0, 0, 0), (0,) * 6, (1,) * 5), Status((48, 0, 0, 0, 0, 0), (0,) * 6, (1,) * 5)
    for i in range(5):
        core.received(0.0114 * (i + 1), format_status(zero))

    out = core.received(0.0114 * 6, format_status(wrong))

    assert out == b"" and core.statistics.implausible_lines == 1
    assert core.newest.status == zero


def test_a_kit_that_starts_again_under_an_open_port_is_noticed_and_frozen():
    robot = VirtualRobot()
    robot.core.sync_speed_deg_s = 90
    robot.advance(0.2)
    move(robot, [40, 0, 0, 0, 0, 0])
    robot.advance(2.0)
    epoch = robot.epoch

    robot.kit.firmware.reset(robot.kit.firmware.now_us)
    robot.advance(2.2)

    assert robot.core.statistics.restarts == 1 and robot.epoch == epoch + 1
    robot.advance(4.0)
    assert robot.reported_deg() == (0,) * 6, "the old goal must not be obeyed any more"


def test_silence_makes_a_link_lost_after_a_third_of_a_second_and_reopens_late():
    # To open a port resets the board and throws the arm to zero; the firmware's own stalls last up to six seconds.
    core = LinkCore()
    core.opened(0.0)
    core.received(0.1, format_status(Status((0,) * 6, (0,) * 6, (1,) * 5)))

    assert not core.check_silence(0.35) and core.state is LinkState.STREAMING
    assert not core.check_silence(0.45) and core.state is LinkState.LOST
    assert not core.check_silence(6.5)
    assert core.check_silence(8.0)


def test_attempts_to_open_wait_longer_each_time_up_to_three_seconds():
    core = LinkCore()

    assert [round(core.failed(0.0, "x"), 1) for _ in range(6)] == [0.2, 0.4, 0.8, 1.6, 3.0, 3.0]
