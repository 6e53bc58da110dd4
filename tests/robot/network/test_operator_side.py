"""A whole session over real transports."""

import threading
import time

import pytest
from robot_rooms import TOPICS, wait_for

from featherweight import robot as fwr
from featherweight.robot.network.follower_side import FollowerSide
from featherweight.robot.network.operator_side import join
from featherweight.robot.safety.mode import Mode

pytest.importorskip("cryptography")


def test_a_whole_session_moves_the_arm_and_a_second_operator_does_not(room):
    with fwr.UMIRobot(fwr.UMIRobotConfig(port="sim")) as robot:
        side = FollowerSide(robot, room.join("arm1"), TOPICS)
        stop, ends = threading.Event(), threading.Event()
        threads = [threading.Thread(target=side.run, args=(stop,))]
        alice, bob = room.join("alice"), room.join("bob")
        leaders = [
            fwr.ScriptedLeader(lambda t: (12.0, 0, 0, 0, 0, 0)),
            fwr.ScriptedLeader(lambda t: (-60.0, 0, 0, 0, 0, 0)),
        ]
        with leaders[0], leaders[1]:
            for transport, leader, name in ((alice, leaders[0], "alice"), (bob, leaders[1], "bob")):
                threads.append(
                    threading.Thread(target=join, args=(leader, transport, TOPICS, name), kwargs={"stop": ends})
                )
            for thread in threads:
                thread.start()
                time.sleep(0.8)
            moved = wait_for(lambda: robot.reported_deg()[0] == 12, 6)
            counters, status = dict(side.receiver.counters), side.status()
            ends.set()
            held = wait_for(lambda: side.controller.mode is Mode.HOLD, 1)
            stop.set()
            for thread in threads:
                thread.join()
    assert moved and held
    assert counters["accepted"] > 60 and counters["lease"] > 20 and status["holder"] == "alice"
    assert status["round_trip_ms_p50"] < 100
