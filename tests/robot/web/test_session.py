"""A page's session, in virtual time: ages, pauses, stops, roles, pictures."""

import json

import pytest

from featherweight.errors import ConfigError
from featherweight.robot.camera.view import CameraView
from featherweight.robot.network.follower_side import FollowerSide
from featherweight.robot.network.inproc import InprocBroker
from featherweight.robot.network.topics import Topics
from featherweight.robot.safety.mode import Mode
from featherweight.robot.virtual_robot import VirtualRobot
from featherweight.robot.web.session import WAITING_STATES, PageSession, Visitor

TOPICS = Topics("lab1", "arm1")
VIEW = CameraView(fovy_deg=42.0, pose=[0, 1, 0, 0, 0.5, 0, -0.9, 0, -0.9, 0, -0.5, 0.6])


class Page:
    """A page, its line and its arm, in one clock."""

    def __init__(self, role="operator", one_way_s=0.0):
        self.arm, self.one_way_s = VirtualRobot(), one_way_s
        self.arm.sleep(0.2)
        broker = InprocBroker("lab1")
        self.robot_link = broker.join("arm1", "robot")
        self.side = FollowerSide(
            self.arm, self.robot_link, TOPICS, clock_ns=lambda: round(self.arm.now_s * 1e9), views={"front": VIEW}
        )
        visitor = Visitor("alice", role)
        self.session = PageSession(visitor, broker.join("alice", role), TOPICS, clock=lambda: self.arm.now_s)
        self.echo = (0.0, 0.0)
        self.last, self.wish, self.seen = {}, None, 0
        self.line, self.views = [], []

    def run(self, seconds, is_page_alive=True, until=lambda: False):
        for i in range(round(seconds * 60)):
            self.arm.sleep(1 / 60)
            self.side.step()
            now_ms = self.arm.now_s * 1000
            if is_page_alive and i % 2 == 0:
                message = {"t": now_ms, "e": self.echo[0], "h": now_ms - self.echo[1], "s": self.seen}
                self.line.append((self.arm.now_s + self.one_way_s, message | ({"w": self.wish} if self.wish else {})))
            while self.line and self.line[0][0] <= self.arm.now_s:
                self.session.take(self.line.pop(0)[1])
            self.session.step()
            state = self.session.state_message()
            if state is not None and is_page_alive:
                self.last = json.loads(state)
                self.views += [self.last["views"]] if "views" in self.last else []
                self.seen = self.last["s"]
                self.echo = (self.last["t"], now_ms)
            if until():
                return True
        return False

    @property
    def mode(self):
        return self.side.controller.mode


def test_a_page_is_told_once_where_cameras_stand(page):
    page.run(1.2)  # two status messages
    assert page.views == [{"front": VIEW.to_dict()}]


@pytest.fixture
def page():
    page = Page()
    page.run(0.5)
    return page


def test_a_held_control_drives_within_200_ms_and_letting_go_holds_at_once(page):
    page.wish = ["angles", [30, 0, 0, 0, 0, 0]]
    assert page.run(0.2, until=lambda: page.arm.reported_deg()[0] > 0)
    assert page.run(3.0, until=lambda: page.mode is Mode.ACTIVE)
    assert page.last["mine"] and page.last["by"] == "alice" and page.last["goal"][0] == 30
    assert 0 <= page.last["age"] <= 20 and page.last["loss"] == 0

    page.wish = None
    assert page.run(0.1, until=lambda: page.mode is Mode.HOLD)
    assert page.side.controller.modes.reason == "the operator let go"


def test_a_page_that_falls_silent_holds_within_250_ms(page):
    page.wish = ["angles", [60, 0, 0, 0, 0, 0]]
    assert page.run(3.0, until=lambda: page.mode is Mode.ACTIVE)
    assert page.run(0.25, is_page_alive=False, until=lambda: page.mode is Mode.HOLD)
    stopped = page.arm.reported_deg()
    page.run(1.0, is_page_alive=False)
    assert max(abs(a - b) for a, b in zip(page.arm.reported_deg(), stopped, strict=True)) <= 3


def test_a_closed_page_holds_and_gives_the_robot_back(page):
    page.wish = ["angles", [60, 0, 0, 0, 0, 0]]
    assert page.run(3.0, until=lambda: page.mode is Mode.ACTIVE)
    page.session.close_control()
    page.side.step()
    assert page.mode is Mode.HOLD and page.side.lease.holder is None


def test_wishes_older_than_a_command_may_be_are_dropped():
    page = Page(one_way_s=0.05)
    page.run(1.0)
    page.wish = ["angles", [30, 0, 0, 0, 0, 0]]
    assert page.run(3.0, until=lambda: page.mode is Mode.ACTIVE)
    page.one_way_s = 0.4  # from now on; the clocks know the old way
    page.run(1.0)
    assert page.session.counters["old"] > 10 and page.mode is Mode.HOLD
    assert page.last["late"] == 250
    page.wish = None
    page.run(1.5)
    assert "late" not in page.last


def test_a_stop_needs_a_reset_which_works_long_after_the_place_was_lost(page):
    page.wish = ["angles", [30, 0, 0, 0, 0, 0]]
    page.run(1.0)
    page.session.take({"ask": "stop"})
    page.wish = None
    page.run(5.0)
    assert page.mode is Mode.ESTOP and page.side.lease.holder is None
    page.session.take({"ask": "reset"})
    page.run(0.1)
    assert page.mode is Mode.IDLE


def test_an_observer_sees_and_moves_and_stops_nothing():
    page = Page("observer")
    page.wish = ["angles", [30, 0, 0, 0, 0, 0]]
    page.run(1.0)
    page.session.take({"ask": "stop"})
    page.run(0.2)
    assert page.mode is Mode.IDLE and page.last["q"] == [0.0] * 6 and page.arm.reported_deg() == (0.0,) * 6


@pytest.mark.parametrize(
    "message",
    [{"t": "now"}, {"t": 1, "h": None}, {"t": 5000.0, "h": 0, "w": 3}, {"t": 5000.0, "h": 0, "w": ["angles", [1]]}],
)
def test_a_malformed_message_is_refused_and_the_page_leads_no_more(page, message):
    page.wish = ["angles", [60, 0, 0, 0, 0, 0]]
    assert page.run(3.0, until=lambda: page.mode is Mode.ACTIVE)
    if "w" in message:
        message["t"] = page.arm.now_s * 1000
    with pytest.raises(ConfigError):
        page.session.take(message)
    assert page.session.leader.is_leading is False
    page.side.step()
    assert page.mode is Mode.HOLD


def test_a_slow_page_gets_few_states_and_the_next_picture_after_the_last(page):
    page.robot_link.publish(TOPICS.camera("front"), b"first")
    page.session.take({"t": page.arm.now_s * 1000, "h": 0, "s": page.seen, "camera": "front"})
    assert page.session.picture_message() == b"first"
    page.robot_link.publish(TOPICS.camera("front"), b"second")
    assert page.session.picture_message() is None
    page.session.take({"t": page.arm.now_s * 1000, "h": 0, "s": page.seen, "p": 1, "camera": "front"})
    assert page.session.picture_message() == b"second" and page.session.picture_message() is None

    sent = [page.session.state_message() for _ in range(2 * WAITING_STATES)]
    assert sum(one is not None for one in sent) <= WAITING_STATES
    assert page.session.counters["states left out"] >= WAITING_STATES
