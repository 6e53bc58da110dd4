"""One class: who sees and drives what, turns, the teacher's stop, the board. Without sockets and threads."""

import asyncio
import json

import pytest

from featherweight.robot.classroom.room import ABSENT_S, ClassRoom
from featherweight.robot.network.topics import Topics
from featherweight.robot.web.session import Visitor


@pytest.fixture
def room(class_folder, clock):
    return ClassRoom(class_folder, 60.0, clock)


def token(folder, name):
    return (folder / "members" / name / "token").read_text().strip()


def robot(room, name):
    """A robot of the room and all that it hears."""
    transport, heard = room.relay.join(name, "robot"), []
    for topic in ("cmd", "ctl", "instructor"):
        transport.subscribe(getattr(Topics(room.name, name), topic), lambda topic, message: heard.append(message))
    return transport, heard


def kinds(heard):
    return [json.loads(message)["type"] for message in heard]


def test_tokens_admit_people_and_no_robots(room, class_folder):
    assert room.admit(token(class_folder, "teacher")) == Visitor("teacher", "instructor")
    assert room.admit(token(class_folder, "student01")) == Visitor("student01", "operator")
    assert room.admit(token(class_folder, "sim-student01")) is None and room.admit("guess") is None


def test_students_see_their_own_simulator_and_shared_robots_others_see_all(room):
    assert room.robots(Visitor("student01")) == ["sim-student01", "arm1"]
    assert room.robots(Visitor("native")) == ["arm1"]
    assert set(room.robots(Visitor("eve", "observer"))) == {"arm1", "sim-student01", "sim-student02"}


def test_nobody_drives_the_simulator_of_another_not_even_past_the_page(room):
    _, heard = robot(room, "sim-student01")
    topics = Topics("lab1", "sim-student01")
    for name, role in (("student02", "operator"), ("native", "operator"), ("eve", "observer")):
        link = asyncio.run(room.join(Visitor(name, role)))
        link.publish(topics.cmd, b"frame")
        link.publish(topics.ctl, b'{"type": "stop"}')
    assert heard == [] and room.relay.refused == 6
    asyncio.run(room.join(Visitor("student01"))).publish(topics.cmd, b"frame")
    assert heard == [b"frame"]


def test_a_shared_robot_hears_whose_turn_it_is_and_everybodys_stop(room, clock):
    _, heard = robot(room, "arm1")
    topics = Topics("lab1", "arm1")
    first, second = Visitor("student01"), Visitor("student02")
    links = {visitor.name: asyncio.run(room.join(visitor)) for visitor in (first, second)}
    for visitor in (first, second):
        room.ask(visitor, "arm1", {"turn": True})
    links["student02"].publish(topics.cmd, b"2")
    links["student01"].publish(topics.cmd, b"1")
    assert heard == [b"1"]
    told = room.told(second, "arm1")["class"]
    assert told["driver"] == "student01" and told["waiting"] == 1 and not told["mine"] and told["left"] == 60

    clock.now_s += 61
    links["student01"].publish(topics.cmd, b"1")
    links["student02"].publish(topics.cmd, b"2")
    assert heard == [b"1", b"2"] and room.told(second, "arm1")["class"]["mine"]
    links["student01"].publish(topics.ctl, b'{"type": "stop"}')
    links["student01"].publish(topics.ctl, b'{"type": "reset"}')
    assert kinds(heard[2:]) == ["stop"]

    room.ask(second, "arm1", {"turn": False})
    assert room.told(first, "arm1")["class"]["mine"]


def test_who_is_away_for_too_long_loses_the_turn(room, clock):
    room.ask(Visitor("student01"), "arm1", {"turn": True})
    room.told(Visitor("student01"), "arm1")
    room.left(Visitor("student01"), "arm1")
    clock.now_s += ABSENT_S - 1
    room.look()
    assert room.turns["arm1"].driver == "student01"
    clock.now_s += 2
    room.look()
    assert room.turns["arm1"].driver is None


def test_the_teachers_stop_reaches_all_and_those_that_come_later_and_outlives_the_server(room, class_folder, clock):
    teacher, heard = Visitor("teacher", "instructor"), {}
    for name in ("arm1", "sim-student01"):
        _, heard[name] = robot(room, name)
    room.ask(Visitor("student01"), "sim-student01", {"all": "stop"})
    assert not room.is_stopped and heard == {"arm1": [], "sim-student01": []}

    room.ask(teacher, "arm1", {"all": "stop"})
    assert [kinds(one) for one in heard.values()] == [["stop"], ["stop"]]
    again = ClassRoom(class_folder, 60.0, clock)
    late, told = robot(again, "sim-student02")
    late.publish(Topics("lab1", "sim-student02").status, b'{"mode": "IDLE"}')
    late.publish(Topics("lab1", "sim-student02").status, b'{"mode": "ESTOP"}')
    assert again.is_stopped and kinds(told) == ["stop"]

    again.ask(teacher, "arm1", {"all": "reset"})
    assert not again.is_stopped and kinds(told) == ["stop", "reset"]
    assert not ClassRoom(class_folder, 60.0, clock).is_stopped


def test_no_student_leads_out_of_the_teachers_stop(room):
    _, heard = robot(room, "sim-student01")
    room.stop_all("teacher")
    link, topics = asyncio.run(room.join(Visitor("student01"))), Topics("lab1", "sim-student01")
    link.publish(topics.ctl, b'{"type": "request"}')
    link.publish(topics.ctl, b'{"type": "reset"}')
    link.publish(topics.cmd, b"frame")
    link.publish(topics.ctl, b'{"type": "stop"}')
    assert kinds(heard) == ["stop", "stop"]


def test_requests_go_to_the_own_simulator_and_scores_to_the_board(room):
    simulator, heard = robot(room, "sim-student01")
    room.ask(Visitor("student02"), "sim-student01", {"challenge": True})
    room.ask(Visitor("eve", "observer"), "sim-student01", {"challenge": True})
    room.ask(Visitor("student01"), "sim-student01", {"challenge": True})
    room.ask(Visitor("student01"), "sim-student01", "junk")
    assert [json.loads(message) for message in heard] == [{"type": "class", "challenge": True}]

    score = {"points": 66.7, "placed": 2, "cubes": 3, "time_s": 180, "round_trip_ms": 3, "spectral_arc_length": -4}
    for news in ({"score": score, "frames": 3}, {"score": score}, "junk", {"score": None}):
        simulator.publish(Topics("lab1", "sim-student01").news, json.dumps(news).encode())
    told = room.told(Visitor("student02"), "sim-student02")["class"]
    assert [(row["name"], row["points"]) for row in told["board"]] == [("student01", 66.7)]
    assert room.board.rows[0].runs == 1


def test_a_file_is_kept_under_the_name_that_its_key_has_in_this_room(room, class_folder):
    data = b"a letter"
    for visitor in (Visitor("eve", "observer"), Visitor("student02")):
        room.ask(visitor, "sim-student01", {"upload": {"slot": "gripper", "name": "../student01.stl", "bytes": 99}})
        room.upload(visitor, data)
    assert room.uploads.told("eve") == {} and set(room.uploads._coming) == {"student02"}
    robot(room, "sim-student02")[0].publish(Topics("lab1", "sim-student02").news, b'{"frames": 0}')
    told = room.told(Visitor("student02"), "sim-student02")["class"]["own"]["uploads"]
    assert told == {"gripper": {"state": "coming", "text": ""}}
    robot(room, "sim-student01")[0].publish(Topics("lab1", "sim-student01").news, b'{"frames": 0}')
    assert room.told(Visitor("student01"), "sim-student01")["class"]["own"]["uploads"] == {}
