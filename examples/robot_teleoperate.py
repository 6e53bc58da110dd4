"""A leader drives an emulated arm: no hardware, no window. With a kit, leave port out: it is found."""

import argparse
import math

from featherweight import robot as fwr

parser = argparse.ArgumentParser()
parser.add_argument("--port", default="sim", help='serial port of a kit, "auto", or "sim"')
parser.add_argument("--seconds", type=float, default=3.0)
arguments = parser.parse_args()

leader = fwr.ScriptedLeader(lambda t: [20 * math.sin(1.5 * t + i) for i in range(5)] + [0.0])
follower = fwr.UMIRobot(fwr.UMIRobotConfig(port=arguments.port))
with follower, leader:
    # SYNC catches up slowly first; any doubt (silence, a lost link, a restarted board) holds the arm.
    result = fwr.teleoperate(leader, follower, duration_s=arguments.seconds)
    print(f"{result.steps} steps, ended {result.mode.name}; reported {follower.reported_deg()}")
    print(f"{follower.statistics.lines_per_s:.0f} status lines a second, {follower.statistics.bad_lines} bad ones")
