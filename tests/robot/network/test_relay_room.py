"""Participants of a relay's own process."""

import pytest
from robot_rooms import TOPICS

pytest.importorskip("cryptography")


@pytest.fixture
def room(rooms):
    pytest.importorskip("websockets")
    from featherweight.robot.network.relay_room import RelayRoom

    return RelayRoom(rooms[0])


def test_participants_of_one_process_obey_the_roles(room):
    arm, alice, eve = room.join("arm1", "robot"), room.join("alice", "operator"), room.join("eve", "observer")
    heard = {name: [] for name in ("arm1", "alice", "eve")}
    for link, topic in ((arm, TOPICS.cmd), (alice, TOPICS.state), (eve, TOPICS.cmd), (eve, TOPICS.state)):
        link.subscribe(topic, lambda topic, message, name=link.name: heard[name].append(message))
    alice.publish(TOPICS.cmd, b"go")
    eve.publish(TOPICS.cmd, b"no")
    arm.publish(TOPICS.state, b"here")
    assert heard == {"arm1": [b"go"], "alice": [b"here"], "eve": [b"here"]} and room.refused == 1

    alice.liveliness(TOPICS.alive("alice"))
    alice.liveliness(TOPICS.alive("bob"))
    assert arm.roster("fw/lab1/*/alive") == [TOPICS.alive("alice")]
    alice.close()
    alice.close()
    alice.publish(TOPICS.cmd, b"gone")
    assert not alice.is_connected and heard["arm1"] == [b"go"] and arm.roster("fw/lab1/*/alive") == []


def test_a_gate_is_asked_after_the_roles(room):
    room.gate = lambda name, role, topic, message: message != b"bad"
    arm, alice, heard = room.join("arm1", "robot"), room.join("alice", "operator"), []
    arm.subscribe(TOPICS.cmd, lambda topic, message: heard.append(message))
    for message in (b"good", b"bad"):
        alice.publish(TOPICS.cmd, message)
    assert heard == [b"good"] and room.refused == 1


def test_only_a_members_token_is_one(room, rooms):
    token = (rooms[0] / "members" / "alice" / "token").read_text().strip()
    assert room.member(token) == ("alice", "operator") and room.member(token[:-1]) is None and room.member("") is None
