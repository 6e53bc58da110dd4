"""Roles by topic."""

import pytest

from featherweight.errors import ConfigError
from featherweight.robot.network import Topics
from featherweight.robot.network.topics import may_publish, may_subscribe


@pytest.mark.parametrize(
    ("role", "topic", "publish", "subscribe"),
    [
        ("robot", "fw/lab/arm/state", True, False),
        ("robot", "fw/lab/other/state", False, False),
        ("robot", "fw/lab/arm/cmd", False, True),
        ("robot", "fw/lab/arm/cam/front", True, False),
        ("operator", "fw/lab/arm/cmd", True, False),
        ("operator", "fw/lab/arm/ctl", True, False),
        ("operator", "fw/lab/arm/ctl-instructor", False, False),
        ("operator", "fw/lab/arm/state", False, True),
        ("instructor", "fw/lab/arm/ctl-instructor", True, False),
        ("observer", "fw/lab/arm/cmd", False, False),
        ("observer", "fw/lab/arm/cam/front", False, True),
        ("observer", "fw/other/arm/state", False, False),
        ("operator", "fw/other/arm/cmd", False, False),
        ("nobody", "fw/lab/arm/state", False, False),
        ("operator", "fw/lab", False, False),
    ],
)
def test_roles_may_do_what_they_need_and_nothing_else(role, topic, publish, subscribe):
    assert may_publish(role, topic, "lab", "arm") is publish
    assert may_subscribe(role, topic, "lab", "arm") is subscribe


def test_names_that_would_break_topics_are_refused():
    for name in ("", "a/b", "*", "a b", "..", "x" * 65):
        with pytest.raises(ConfigError, match="is no name"):
            Topics("lab1", name)
