"""Operator and robot with 75 +- 15 ms and 1 % loss between them; then the line is cut, and the arm is held."""

import threading
import time

from featherweight import robot as fwr
from featherweight.robot.network import Impairment, InprocBroker, Topics
from featherweight.robot.network.follower_side import FollowerSide
from featherweight.robot.network.operator_side import OperatorSide

broker, topics = InprocBroker("lab1"), Topics("lab1", "arm1")
line = fwr.Impaired(broker.join("alice", "operator"), Impairment.preset("tokyo-dhaka"))
leader = fwr.ScriptedLeader(lambda t: (15.0, 0, 0, 0, 0, 0))
stop, leave = threading.Event(), threading.Event()
with fwr.UMIRobot(fwr.UMIRobotConfig(port="sim")) as arm, leader:
    side = FollowerSide(arm, broker.join("arm1", "robot"), topics)
    operator = OperatorSide(leader, line, topics, "alice")
    threads = [threading.Thread(target=side.run, args=(stop,)), threading.Thread(target=operator.run, args=(leave,))]
    for thread in threads:
        thread.start()
    time.sleep(3.0)
    status = side.status()
    print(f"{side.controller.mode.name}: age {status['age_ms_p50']:.0f} ms, jitter {status['jitter_ms']:.0f} ms")
    line.close()  # the line is cut
    time.sleep(0.4)
    print(f"{side.controller.mode.name}: {side.controller.modes.reason}")
    assert side.controller.mode is fwr.Mode.HOLD
    leave.set()
    stop.set()
    for thread in threads:
        thread.join()
