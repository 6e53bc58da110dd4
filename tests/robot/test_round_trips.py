"""Time from an operator's command to the byte on the serial line and to the state that answers it; real clock."""

import socket
import threading
import time

import pytest

from featherweight import robot as fwr
from featherweight.robot.kit import JOINT_KEYS
from featherweight.robot.network import InprocBroker, Topics
from featherweight.robot.network.follower_side import FollowerSide
from featherweight.robot.network.membership import Membership
from featherweight.robot.network.operator_side import OperatorSide

TOPICS = Topics("lab1", "arm1")


def watch_serial(robot):
    """Note when the driver's thread writes the first command that knows of each goal; goal time -> time."""
    written = {}
    core, received = robot.link.core, robot.link.core.received

    def note(now_s, data):
        goal = core._goal
        out = received(now_s, data)
        if out:
            written.setdefault(goal.time_s, time.monotonic())
        return out

    core.received = note
    return written


def measure(robot, robot_link, operator_link, seconds):
    """Run a session; return sorted seconds from publishing a command until its state came and its byte went out."""
    side = FollowerSide(robot, robot_link, TOPICS)
    leader = fwr.ScriptedLeader(lambda t: (20 * (int(t * 2) % 2), 0, 0, 0, 0, 0))
    leader.connect()
    operator = OperatorSide(leader, operator_link, TOPICS, "alice")
    written = watch_serial(robot)
    sent, answered, came = {}, {}, {}
    publish, take, receive = operator_link.publish, operator._take_state, side.receiver.receive

    def note_sent(topic, message):
        if topic == TOPICS.cmd:
            sent[operator._sequence] = time.monotonic()
        publish(topic, message)

    def note_state(data, now_ns):
        take(data, now_ns)
        answered.setdefault(operator.state.accepted_sequence, now_ns / 1e9)

    def note_command(data, now_ns):
        angles = receive(data, now_ns)
        if angles is not None:
            came[side.receiver.accepted.sequence] = now_ns / 1e9
        return angles

    operator_link.publish, operator._take_state, side.receiver.receive = note_sent, note_state, note_command
    stop = threading.Event()
    threads = [threading.Thread(target=side.run, args=(stop,)), threading.Thread(target=operator.run, args=(stop,))]
    for thread in threads:
        thread.start()
    time.sleep(seconds)
    stop.set()
    for thread in threads:
        thread.join()
    trips = []
    for sequence, start in sorted(sent.items())[60:]:
        if sequence in came and came[sequence] in written and sequence in answered:
            trips.append(max(written[came[sequence]], answered[sequence]) - start)
    assert len(trips) > 0.7 * 60 * (seconds - 1.5)
    return sorted(trips)


@pytest.mark.slow
def test_in_process_a_command_is_on_the_wire_within_15_ms():
    with fwr.UMIRobot(fwr.UMIRobotConfig(port="sim", sync_speed_deg_s=90)) as robot:
        written, delays = watch_serial(robot), []
        for i in range(600):
            start = time.monotonic()
            robot.send_action(dict.fromkeys(JOINT_KEYS, float(i % 2)))
            goal_s = robot.link.core._goal.time_s
            while goal_s not in written:
                time.sleep(0.0002)
            delays.append(written[goal_s] - start)
            time.sleep(1 / 60)
    delays.sort()

    # One line takes 11.4 ms; the rest is the thread's.
    assert delays[int(0.99 * len(delays))] <= 0.015


@pytest.mark.slow
def test_in_process_a_whole_round_trip_takes_at_most_15_ms():
    broker = InprocBroker("lab1")
    with fwr.UMIRobot(fwr.UMIRobotConfig(port="sim")) as robot:
        trips = measure(robot, broker.join("arm1", "robot"), broker.join("alice", "operator"), seconds=20.0)

    # One status line of the kit takes 11.4 ms; both loops and the emulated port look for messages each millisecond.
    assert trips[int(0.99 * len(trips))] <= 0.015


@pytest.mark.slow
def test_over_zenoh_beside_a_camera_a_round_trip_takes_at_most_25_ms(tmp_path, graphics):
    pytest.importorskip("zenoh")
    from featherweight.robot.network.certificates import create_room
    from featherweight.robot.network.follower_side import _send_pictures
    from featherweight.robot.network.zenoh import ZenohRelay, ZenohTransport

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tls/127.0.0.1:{free.getsockname()[1]}"
    room = create_room(tmp_path / "room", "lab1", {"arm1": "robot", "alice": "operator"})
    relay = ZenohRelay(room, address)
    links = [ZenohTransport(address, Membership.load(room / "members" / name)) for name in ("arm1", "alice")]
    with fwr.SimRobot(fwr.SimRobotConfig(cameras=("front",))) as robot:
        stop = threading.Event()
        camera = threading.Thread(target=_send_pictures, args=(robot, links[0], TOPICS, stop, 30.0))
        camera.start()
        trips = measure(robot, *links, seconds=20.0)
        stop.set()
        camera.join()
    for thing in (*links, relay):
        thing.close()

    # One status line of the kit takes 11.4 ms; both loops look for messages each millisecond.
    assert trips[int(0.99 * len(trips))] <= 0.025


@pytest.mark.slow
def test_ten_minutes_on_the_real_clock_hold_never_and_grow_nothing():
    import resource

    broker = InprocBroker("lab1")
    leader = fwr.ScriptedLeader(lambda t: (20 * (int(t / 2) % 2), 0, 0, 0, 0, 0))
    with fwr.UMIRobot(fwr.UMIRobotConfig(port="sim")) as robot, leader:
        side = FollowerSide(robot, broker.join("arm1", "robot"), TOPICS)
        operator = OperatorSide(leader, broker.join("alice", "operator"), TOPICS, "alice")
        stop = threading.Event()
        threads = [threading.Thread(target=side.run, args=(stop,)), threading.Thread(target=operator.run, args=(stop,))]
        for thread in threads:
            thread.start()
        time.sleep(60)
        kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        time.sleep(540)
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - kib
        status, statistics = side.status(), robot.statistics
        stop.set()
        for thread in threads:
            thread.join()

    assert statistics.lines > 0.9 * 600 * 87 and statistics.bad_lines == 0 and statistics.reconnects == 0
    assert side.counters["internal errors"] == 0 and grown < 4096
    # On a busy machine loops are slower than 60 Hz, and a pause may hold the arm; it must come back each time.
    assert status["mode"] == "ACTIVE" and status["accepted"] > 0.95 * operator._sequence > 0.95 * 600 * 20
