"""The arm: control steps against mink and the published controller, whole degrees, driver, round trips.

    scripts/bench robot [--rounds 5] [--seconds 8]

Control: the same 40 random starts and targets for every controller, in alternating rounds, processor time per step, and
how many targets came within 0.1 mm in 500 steps. Driver: processor time of a process that follows a kit at 88 lines a
second behind a pseudo-terminal, the emulator being another process. Round trips: command to accepted state, real clock.
"""

import argparse
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from measurement import machine, write_rows
from rich.console import Console
from rich.table import Table

from featherweight import robot as fwr
from featherweight.robot.control import TaskController
from featherweight.robot.kinematics import jacobian, position_angles, search_integers, wrist_point
from featherweight.robot.network import InprocBroker, Topics
from featherweight.robot.network.follower_side import FollowerSide
from featherweight.robot.network.membership import Membership
from featherweight.robot.network.operator_side import OperatorSide
from featherweight.robot.safety.guard import way_is_free

TOPICS = Topics("lab1", "arm1")
STEPS = 500


def random_angles(count: int, seed: int) -> np.ndarray:
    """Return (count, 5) random angles within 60 degrees."""
    return np.radians(np.random.default_rng(seed).uniform(-60, 60, (count, 5)))


def bench_control(rounds: int, count: int = 40) -> list[dict[str, Any]]:
    """Compare the controllers on the same starts and targets."""
    starts, targets = random_angles(count, 0), wrist_point(random_angles(count, 1))
    controllers = {name: TaskController(name) for name in ("analytic", "mink", "official")}
    times: dict[str, list[float]] = {name: [] for name in controllers}
    reached: dict[str, int] = {}
    fastest: dict[str, float] = {}
    for number in range(rounds):
        for name, controller in controllers.items():
            errors, speed = [], 0.0
            start = time.process_time()
            for q, target in zip(starts, targets, strict=True):
                for _ in range(STEPS if number == 0 else 25):
                    after = controller.step(q, target)
                    if number == 0:
                        speed = max(speed, float(np.abs(after - q).max()) / controller.period_s)
                    q = after
                errors.append(float(np.linalg.norm(wrist_point(q) - target)))
            if number == 0:
                reached[name], fastest[name] = sum(error < 1e-4 for error in errors), float(np.degrees(speed))
            else:
                times[name].append((time.process_time() - start) / (25 * count))
    return [
        {
            "what": f"control step, {name}",
            "median_us": 1e6 * statistics.median(times[name]),
            "spread": (max(times[name]) - min(times[name])) / statistics.median(times[name]),
            "note": f"{reached[name]} of {count} within 0.1 mm, up to {fastest[name]:.0f} deg/s",
        }
        for name in controllers
    ]


def bench_calls(rounds: int) -> list[dict[str, Any]]:
    """Time single calls."""
    q = random_angles(500, 2)
    points, degrees = wrist_point(q), np.degrees(q)
    calls: dict[str, Callable[[int], Any]] = {
        "inverse kinematics, one point": lambda i: position_angles(points[i]),
        "jacobian": lambda i: jacobian(q[i]),
        "whole-degree search, 243 neighbours": lambda i: search_integers(degrees[i]),
        "guard, one step": lambda i: way_is_free(degrees[i], degrees[i] + 1),
    }
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.process_time()
            for i in range(len(q)):
                call(i)
            times[name].append((time.process_time() - start) / len(q))
    return [
        {
            "what": name,
            "median_us": 1e6 * statistics.median(values),
            "spread": (max(values) - min(values)) / statistics.median(values),
            "note": "",
        }
        for name, values in times.items()
    ]


def bench_driver(seconds: float) -> list[dict[str, Any]]:
    """Measure our driver's share of a core; the emulated kit runs in another process."""
    with tempfile.TemporaryDirectory() as folder:
        link = str(Path(folder) / "kit")
        command = [sys.executable, "-m", "featherweight", "robot", "emulate", "--pty", link, "--boot", "0.1"]
        kit = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert kit.stdout is not None
        kit.stdout.readline()
        with fwr.UMIRobot(fwr.UMIRobotConfig(port=link)) as robot:
            robot.send_action(dict.fromkeys(fwr.JOINT_KEYS, 30.0))
            before, lines = resource.getrusage(resource.RUSAGE_SELF), robot.statistics.lines
            time.sleep(seconds)
            after, lines = resource.getrusage(resource.RUSAGE_SELF), robot.statistics.lines - lines
            rate = robot.statistics.lines_per_s
        kit.terminate()
        kit.communicate()
    used_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    note = f"{100 * used_s / seconds:.1f} % of a core at {rate:.0f} lines/s"
    return [{"what": "driver, per status line", "median_us": 1e6 * used_s / lines, "spread": 0.0, "note": note}]


def bench_round_trips(seconds: float) -> list[dict[str, Any]]:
    """Measure the network's round trip over every transport."""
    rows = [run_session("in process", *inproc_links(), seconds)]
    with tempfile.TemporaryDirectory() as folder:
        from featherweight.robot.network.certificates import create_room

        room = create_room(Path(folder) / "room", "lab1", {"arm1": "robot", "alice": "operator"})
        members = [Membership.load(room / "members" / name) for name in ("arm1", "alice")]
        from featherweight.robot.network.relay import Relay
        from featherweight.robot.network.websocket import WebSocketTransport

        relay = Relay(room).start()
        links = [WebSocketTransport(relay.uri, member) for member in members]
        rows.append(run_session("websocket, TLS, relay", links[0], links[1], seconds))
        for link in links:
            link.close()
        relay.close()
        from featherweight.robot.network.zenoh import ZenohRelay, ZenohTransport

        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"tls/127.0.0.1:{free.getsockname()[1]}"
        router = ZenohRelay(room, address)
        sessions = [ZenohTransport(address, member) for member in members]
        rows.append(run_session("zenoh, mutual TLS, relay", sessions[0], sessions[1], seconds))
        for session in sessions:
            session.close()
        router.close()
    return rows


def inproc_links() -> tuple[Any, Any]:
    """Return both ends of a network inside the process."""
    broker = InprocBroker("lab1")
    return broker.join("arm1", "robot"), broker.join("alice", "operator")


def run_session(name: str, robot_link: Any, operator_link: Any, seconds: float) -> dict[str, Any]:
    """Run a session; return its round trips."""
    leader = fwr.ScriptedLeader(lambda t: (10.0, 0, 0, 0, 0, 0))
    with fwr.UMIRobot(fwr.UMIRobotConfig(port="sim")) as robot, leader:
        side = FollowerSide(robot, robot_link, TOPICS)
        operator = OperatorSide(leader, operator_link, TOPICS, "alice")
        stop = threading.Event()
        threads = [threading.Thread(target=one.run, args=(stop,)) for one in (side, operator)]
        for thread in threads:
            thread.start()
        time.sleep(seconds)
        stop.set()
        for thread in threads:
            thread.join()
    trips = operator.delays.round_trip_ms
    return {
        "what": f"round trip of the network, {name}",
        "median_us": 1e3 * trips.p50,
        "spread": 0.0,
        "note": f"p95 {trips.p95:.2f} ms, p99 {trips.p99:.2f} ms, without the time that the other side held the stamp",
    }


def main() -> None:
    """Run everything, print a table, append rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=8.0)
    arguments = parser.parse_args()
    rows = [
        *bench_control(arguments.rounds),
        *bench_calls(arguments.rounds),
        *bench_driver(arguments.seconds),
        *bench_round_trips(arguments.seconds),
    ]
    table = Table(title=", ".join(machine().values()))
    for column in ("what", "median (us)", "spread", "note"):
        table.add_column(column)
    for row in rows:
        table.add_row(row["what"], f"{row['median_us']:.1f}", f"{row['spread']:.2f}", row["note"])
    Console(width=140).print(table)
    Console().print(f"Rows: {write_rows('robot', rows)}")


if __name__ == "__main__":
    main()
