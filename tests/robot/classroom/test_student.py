"""The simulator of one student."""

import json
import subprocess
import sys
import threading
import time

import pytest

from featherweight.robot.classroom.student import Student
from featherweight.robot.network.inproc import InprocBroker
from featherweight.robot.network.topics import Topics

pytest.importorskip("mujoco")


def test_it_tells_what_goes_on_and_obeys_the_class(tmp_path):
    from featherweight import robot as fwr

    broker, topics, news = InprocBroker("lab1"), Topics("lab1", "sim"), []
    teacher = broker.join("teacher", "instructor")
    teacher.subscribe("fw/lab1/*/status/class", lambda _, message: news.append(json.loads(message)))
    with fwr.SimRobot(fwr.SimRobotConfig(scene="challenge", cubes=2)) as robot:
        student, stop = Student(robot, broker.join("sim", "robot"), topics, tmp_path), threading.Event()
        thread = threading.Thread(target=student.run, args=(stop,))
        thread.start()
        teacher.publish(topics.instructor, json.dumps({"type": "class", "challenge": True}).encode())
        end_s = time.monotonic() + 10
        while not (news and news[-1]["challenge"]) and time.monotonic() < end_s:
            time.sleep(0.02)
        stop.set()
        thread.join()
    told = news[-1]
    assert told["challenge"] and told["runs"] == 1 and told["left"] >= 179 and told["trouble"] == ""
    assert len(told["scene"]["cubes"]) == 2 and len(told["scene"]["bin"]) == 3 and told["real_time"] > 0


def test_a_member_that_is_none_is_one_sentence(tmp_path):
    command = [sys.executable, "-m", "featherweight.robot.classroom.student", "--member", str(tmp_path)]
    command += ["--relay", "wss://127.0.0.1:1", "--folder", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=60)
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "no folder of a participant" in done.stderr
