"""The leader whose hand is a browser."""

import pytest

from featherweight.errors import ConfigError, DeviceError
from featherweight.robot.contract import keyed_angles
from featherweight.robot.web.leader import HEARTBEAT_S, WebLeader, Wish


@pytest.fixture
def leader(clock):
    leader = WebLeader(clock=clock)
    leader.connect()
    return leader


def test_it_leads_while_the_page_repeats_its_wish_and_asks_for_a_pause_when_it_lets_go(leader):
    assert leader.get_action() is None and leader.poll_events() == ()
    leader.take(Wish((1.0, 2, 3, 4, 5, 6)))
    assert leader.get_action() == keyed_angles((1, 2, 3, 4, 5, 6)) and leader.poll_events() == ()
    leader.take(None)
    leader.take(None)
    assert leader.get_action() is None and leader.poll_events() == ("pause",) and leader.poll_events() == ()


def test_a_silent_page_leads_no_more_after_200_ms(leader, clock):
    leader.take(Wish((1.0,) * 6))
    clock.now_s += HEARTBEAT_S - 0.01
    assert leader.poll_events() == () and leader.is_leading
    clock.now_s += 0.02
    assert leader.poll_events() == ("pause",) and not leader.is_leading and leader.counters["silent"] == 1


def test_velocities_start_where_the_follower_is_each_time_that_a_control_is_taken(leader, clock):
    leader.take(Wish((30.0, 0, 0, 0, 0, 0), "joint"))
    assert leader.get_action() is None  # nobody knows where the arm is yet
    for start in (10.0, -40.0):
        leader.send_feedback(keyed_angles((start, 0, 0, 0, 0, 0)))
        for _ in range(11):
            leader.take(Wish((30.0, 0, 0, 0, 0, 0), "joint"))
            angle = leader.get_action()["shoulder_pan.pos"]
            clock.now_s += 0.02
        assert angle == pytest.approx(start + 6.0)  # 10 steps of 20 ms at 30 degrees a second
        leader.take(None)


@pytest.mark.parametrize(
    ("mode", "values"),
    [
        ("angles", [0] * 5),
        ("angles", [0] * 5 + [float("nan")]),
        ("angles", [True] * 6),
        ("jump", [0] * 6),
        (None, None),
        ("twist", ["0"] * 6),
        (["angles"], [0] * 6),
    ],
)
def test_what_is_no_wish_is_refused(mode, values):
    with pytest.raises(ConfigError, match="six finite numbers"):
        Wish.parse(mode, values)


def test_an_unconnected_one_says_so():
    with pytest.raises(DeviceError, match="not connected"):
        WebLeader().get_action()
