"""What every transport does alike."""

import time

import pytest
from robot_rooms import MEMBERS, TOPICS, wait_for

pytest.importorskip("cryptography")


def test_messages_arrive_where_the_roles_allow_and_nowhere_else(room):
    got = {name: [] for name in MEMBERS}
    members = {name: room.join(name) for name in ("arm1", "alice", "eve")}
    for name, transport in members.items():
        for topic in (TOPICS.cmd, TOPICS.ctl, TOPICS.instructor, TOPICS.state, TOPICS.camera("*")):
            transport.subscribe(topic, lambda topic, message, name=name: got[name].append((topic, message)))
    time.sleep(0.3)

    def send():
        members["alice"].publish(TOPICS.cmd, b"alice")
        members["eve"].publish(TOPICS.cmd, b"eve")
        members["eve"].publish(TOPICS.state, b"false state")
        members["alice"].publish(TOPICS.instructor, b"not an instructor")
        members["arm1"].publish(TOPICS.state, b"state")
        members["arm1"].publish(TOPICS.camera("front"), b"picture")
        time.sleep(0.05)
        return (TOPICS.camera("front"), b"picture") in got["eve"] and (TOPICS.cmd, b"alice") in got["arm1"]

    assert wait_for(send)
    time.sleep(0.2)
    seen = {(TOPICS.state, b"state"), (TOPICS.camera("front"), b"picture")}
    # zenoh gives a participant back what it published itself; that goes nowhere else.
    assert {(TOPICS.cmd, b"alice")} <= set(got["arm1"]) <= {(TOPICS.cmd, b"alice"), *seen}
    own = {"eve": {(TOPICS.cmd, b"eve"), (TOPICS.state, b"false state")}}
    own["alice"] = {(TOPICS.cmd, b"alice"), (TOPICS.instructor, b"not an instructor")}
    for name in ("eve", "alice"):
        assert seen <= set(got[name]) <= seen | own[name]


def test_the_roster_names_who_is_there(room):
    arm, alice = room.join("arm1"), room.join("alice")
    arm.liveliness(TOPICS.alive("arm1"))
    alice.liveliness(TOPICS.alive("alice"))

    assert wait_for(lambda: alice.roster("fw/lab1/*/alive") == ["fw/lab1/alice/alive", "fw/lab1/arm1/alive"])
    assert alice.is_connected
