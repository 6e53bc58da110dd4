"""What every kit has to do, whichever firmware: the emulators, and the real binaries in a simulated ATmega328P.

The binaries take half a second of processor time for each second of theirs, so of them only one short run is not slow.
"""

import json
import random
import subprocess
import sys
import time

import pytest
from avr_board import AvrBoard, build, build_board, build_oracle, require_avr
from robot_kit_run import run
from robot_moves import move
from robot_parse_table import TABLE

from featherweight import robot as fwr
from featherweight.robot.checked_lines import format_checked_command, parse_checked_status
from featherweight.robot.driver.link_state import LinkState
from featherweight.robot.protocol import parse_status
from featherweight.robot.virtual_robot import VirtualRobot

slow = pytest.mark.slow
PUBLISHED = ["emulator", pytest.param("avr v1", marks=slow), pytest.param("arduino core", marks=slow)]
OWN = ["own emulator", "avr strict"]
OWN_SLOWLY = ["own emulator", pytest.param("avr strict", marks=slow)]
EVERY = ["emulator", pytest.param("avr v1", marks=slow), *OWN]
EVERY_SLOWLY = ["emulator", pytest.param("avr v1", marks=slow), *OWN_SLOWLY]
GOAL = (10, -20, 30, -40, 50, -60)


@pytest.fixture(scope="module")
def build_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("firmware")


@pytest.fixture(scope="module")
def avr(build_folder):
    """Return what makes a board with a firmware by name; everything is built once."""
    require_avr()
    made = {"board": build_board(build_folder)}

    def make(name, **options):
        if name not in made:
            made[name] = build_oracle(build_folder) if name == "oracle" else build(build_folder, name)
        return AvrBoard(made["board"], made[name], **options)

    return make


@pytest.fixture
def kit(request):
    """Return the kit of a name, without the silence of a boot loader."""
    if "emulator" in request.param:
        firmware = "own" if request.param.startswith("own") else "published"
        yield fwr.EmulatedKit(boot_s=0.0, firmware=firmware)
        return
    make = request.getfixturevalue("avr")
    with make({"avr v1": "v1", "avr strict": "strict", "arduino core": "oracle"}[request.param]) as board:
        yield board


@pytest.fixture
def is_own(request):
    """Whether the kit has our firmware, which knows the checked protocol (v1 reads and starts as published)."""
    return request.node.callspec.params["kit"] != "emulator"


def angles(output):
    """Return the (6,) angles of every good line of some output, of either protocol."""
    found = []
    for line in output.split(b"\n"):
        checked = parse_checked_status(line)
        status = checked.status if checked else parse_status(line)
        if status is not None:
            found.append(status.q_deg)
    return found


def talk(kit, lines, seconds, step_us=11_400):
    """Send one line in every loop, then none; return all output."""
    kit.open(0)
    now_us, output = 100_000, kit.read(100_000)
    end_us = now_us + int(seconds * 1e6)
    while now_us < end_us:
        if lines:
            kit.write(now_us, lines.pop(0))
        now_us += step_us
        output += kit.read(now_us)
    return output


@pytest.mark.parametrize("kit", EVERY, indirect=True)
def test_the_driver_moves_the_arm_and_a_dead_host_leaves_it_within_three_degrees(kit, is_own):
    robot = VirtualRobot(kit, step_us=5700)
    robot.advance(0.2)
    move(robot, GOAL)
    robot.advance(1.3)
    robot.is_host_alive = False
    before = robot.reported_deg()
    robot.core.received(robot.now_s + 0.5, kit.read(robot.now_us + 500_000))
    after = robot.reported_deg()

    assert robot.core.statistics.bad_lines == 0 and robot.core.statistics.restarts == 0
    assert robot.core.statistics.lines == pytest.approx(1.8 * 87.7, abs=6)
    assert (robot.core.checked is not None) == is_own
    assert max(abs(a - b) for a, b in zip(after, before, strict=True)) <= 3
    assert max(map(abs, before)) > 15, "it hardly moved"


@pytest.mark.parametrize("row", TABLE, ids=[str(row[0]) for row in TABLE])
@pytest.mark.parametrize("kit", PUBLISHED[1:], indirect=True)
def test_the_published_way_of_reading_is_that_of_the_arduino_core(kit, row, request):
    data, target, _, _, silence_s = row
    if data.startswith(b"V") and request.node.callspec.params["kit"] == "avr v1":
        target = (0,) * 6  # for our firmware it is the offer of the checked protocol, and the arm stays

    silence, output = run(kit, data, seconds=7.0, step_us=10_000)

    # The arm has walked to the target, at most 90 degrees in 1.03 s; 0.02 s are a loop and the step of the reading.
    assert angles(output)[-1] == target
    assert silence == pytest.approx(silence_s, abs=0.02 if silence_s == 0 else 0.1)


STRICT = [
    (b"10 -20 30 -40 90 -90\n", (10, -20, 30, -40, 90, -90)),
    (b"1 2 3 4 5 6\r\n", (1, 2, 3, 4, 5, 6)),
    (b"1.5 2.5 3.5 4.5 5.5 6.5\n", (0,) * 6),
    (b"None None None None None None\n", (0,) * 6),
    (b"1 2 3\n", (0,) * 6),
    (b"5-3 1 2 3 4\n", (0,) * 6),
    (b"95 -95 0 0 0 0\n", (90, -90, 0, 0, 0, 0)),
    (b"1020 3 4 5 6 7\n", (0,) * 6),
    (b"9" * 45 + b"\n1 2 3 4 5 6\n", (1, 2, 3, 4, 5, 6)),
    (b"C 1 9 9 9 9 9 9 AAAA\n", (0,) * 6),
]


@pytest.mark.parametrize("kit", OWN_SLOWLY, indirect=True)
def test_the_strict_reader_takes_whole_lines_alone_and_never_stands_still(kit):
    for data, target in STRICT:
        kit.open(kit.firmware.now_us if isinstance(kit, fwr.EmulatedKit) else kit.now_us)
        feed(kit, b"", 0.1)  # a byte that comes within 0.1 ms of the reset is lost
        silence, output = feed(kit, data, 1.3)
        assert angles(output)[-1] == target, data
        assert silence < 0.03, data
        feed(kit, b"0 0 0 0 0 0\n", 1.3)


def feed(kit, data, seconds, step_us=10_000):
    """Send bytes at once; return (longest silence in s, output) of the time after it."""
    now_us = kit.firmware.now_us if isinstance(kit, fwr.EmulatedKit) else kit.now_us
    kit.write(now_us, data)
    end_us, last_us, silence_us, output = now_us + int(seconds * 1e6), now_us, 0, b""
    while now_us < end_us:
        now_us += step_us
        got = kit.read(now_us)
        if got:
            silence_us, last_us, output = max(silence_us, now_us - last_us), now_us, output + got
    return silence_us / 1e6, output


@pytest.mark.parametrize("kit", EVERY_SLOWLY, indirect=True)
def test_ten_thousand_random_bytes_break_nothing_and_the_driver_streams_again(kit):
    chance = random.Random(4)
    words = [b"-", b" ", b"\n", b"\r", b"V ", b"C ", b"90", b"1", b"\x00", b"\xff", b"7 8 9 1 2 3\n", b"UMI"]
    data = b"".join(chance.choice([*words, bytes([chance.randrange(256)])]) for _ in range(5000))[:10_000]
    kit.open(0)
    kit.read(100_000)
    _, output = feed(kit, data, 2.0)
    assert all(abs(angle) <= 90 for one in angles(output) for angle in one)

    robot = VirtualRobot(kit, step_us=5700)
    robot.now_us = 2_200_000
    robot.advance(9.0)  # the published reader may wait 6 s for what is missing of a line
    assert robot.core.state is LinkState.STREAMING
    bad = robot.core.statistics.bad_lines
    move(robot, GOAL)
    robot.advance(16.0)  # up to 150 degrees at the 30 degrees a second of a soft start
    assert robot.reported_deg() == GOAL and robot.core.statistics.bad_lines == bad


def checked_lines(targets):
    """Return an announcement and one checked command for every target of all joints."""
    return [b"V 0 0 0 0 0 0\n", *(format_checked_command(i, (target,) * 6) for i, target in enumerate(targets, 1))]


@pytest.mark.parametrize("kit", OWN_SLOWLY, indirect=True)
def test_a_silent_host_is_noticed_after_200_ms_and_the_arm_stops_within_a_degree(kit):
    output = talk(kit, checked_lines([90] * 40), 1.2)
    lines = [checked for line in output.split(b"\n") if (checked := parse_checked_status(line))]
    last = next(i for i, line in enumerate(lines) if line.accepted == 40)
    # A loop is 11.4 ms: the newest command is at most one loop older than the first line that reports it.
    at_200_ms = lines[last + int(200 / 11.4)].status.q_deg

    assert not lines[last].is_held and lines[-1].is_held
    assert max(abs(a - b) for a, b in zip(lines[-1].status.q_deg, at_200_ms, strict=True)) <= 1
    assert 20 < at_200_ms[0] < 89
    assert [line.number for line in lines] == [i % 256 for i in range(len(lines))]


@pytest.mark.parametrize("kit", OWN_SLOWLY, indirect=True)
def test_a_damaged_an_old_and_a_repeated_line_are_refused(kit):
    good = format_checked_command(5, (3,) * 6)
    damaged = good.replace(b"3 3", b"3 4", 1)
    output = talk(kit, [b"V 0 0 0 0 0 0\n", damaged, good, good, format_checked_command(4, (9,) * 6)], 0.3)
    newest = [checked for line in output.split(b"\n") if (checked := parse_checked_status(line))][-1]

    assert (newest.accepted, newest.refused, newest.status.q_deg) == (5, 3, (3,) * 6)


@pytest.mark.parametrize("kit", EVERY_SLOWLY, indirect=True)
def test_a_full_sweep_of_all_joints_runs_at_the_top_speed(kit):
    talk(kit, [b"-90 -90 -90 -90 -90 -90\n"], 1.2)
    _, output = feed(kit, b"90 90 90 90 90 90\n", 2.3)
    track = angles(output)

    assert track[0] == (-90,) * 6 and track[-1] == (90,) * 6
    assert {b[0] - a[0] for a, b in zip(track, track[1:], strict=False)} <= {0, 1}
    # 180 loops of 11.4 ms; the first status line after the command is one loop late.
    assert track.index((90,) * 6) == pytest.approx(181, abs=2)


@slow
def test_the_first_hundred_lines_of_the_binary_are_those_of_the_emulator(avr):
    outputs = []
    for kit in (fwr.EmulatedKit(boot_s=0.0), avr("v1")):
        _, output = run(kit, b"10 -20 30 -40 90 -90\n", seconds=1.4)
        outputs.append(b"".join(output.splitlines(keepends=True)[:100]))
        if isinstance(kit, AvrBoard):
            kit.stop()

    assert outputs[0] == outputs[1]


@slow
def test_readings_and_inputs_come_through_and_open_inputs_read_one(avr):
    with avr("strict") as board:
        board.open(0)
        assert parse_status(board.read(200_000).split(b"\n")[-2]).digitals == (1,) * 5
        board.set_inputs((0, 1023, 512, 300, 700, 10), (1, 0, 1, 1, 0))
        status = parse_status(board.read(400_000).split(b"\n")[-2])

    assert status.pots == (0, 1023, 512, 300, 700, 10) and status.digitals == (1, 0, 1, 1, 0)


@slow
@pytest.mark.parametrize("name", ["v1", "strict"])
def test_pulses_on_the_pins_are_those_of_the_servo_library_within_four_microseconds(avr, name):
    target = (-90, -45, 0, 45, 89, 90)
    with avr(name) as board:
        talk(board, [b"%d %d %d %d %d %d\n" % target], 2.1)
        for servo, angle in enumerate(target):
            pulses = [pulse for pulse in board.pulses if pulse.servo == servo][-40:]
            widths = [pulse.width_us for pulse in pulses]
            wanted = 544 + (angle + 90) * 1856 // 180
            assert max(abs(width - wanted) for width in widths) <= 4 and max(widths) - min(widths) <= 4
            frames = [b.rise_us - a.rise_us for a, b in zip(pulses, pulses[1:], strict=False)]
            assert max(abs(frame - 20_000) for frame in frames) <= 4


@slow
def test_servos_rest_until_the_first_line_and_a_reset_leaves_the_arm_where_it_is(avr):
    with avr("strict") as board:
        board.open(0)
        board.read(300_000)
        assert board.pulses == []
        feed(board, b"20 30 0 0 0 0\n", 0.6)
        board.open(board.now_us)  # DTR
        board.pulses.clear()
        _, output = feed(board, b"", 0.3)

    assert angles(output)[0] == angles(output)[-1] == (20, 30, 0, 0, 0, 0)
    assert {round(pulse.width_us) for pulse in board.pulses if pulse.servo == 0} <= {1677, 1678, 1679}


@slow
def test_the_firmware_fits_with_half_of_flash_and_ram_to_spare(avr, build_folder):
    with avr("strict") as board:
        talk(board, checked_lines([30] * 30), 0.5)
        stack = int(board.ask("stack"))
    for name in ("v1", "strict"):
        avr(name).stop()
        output = subprocess.run(
            ["avr-size", "-A", str(build_folder / name / "firmware.elf")], capture_output=True, text=True, check=True
        ).stdout
        lines = [line.split() for line in output.splitlines() if line.startswith(".")]
        size = {words[0]: int(words[1]) for words in lines}
        flash = size[".text"] + size[".data"]
        ram = size[".data"] + size[".bss"] + size.get(".noinit", 0) + stack
        sys.stdout.write(f"{name}: flash {flash} of 32768, RAM {ram} of 2048 bytes with a stack of {stack}\n")
        assert flash <= 32768 // 2 and ram <= 2048 // 2


@slow
def test_ten_minutes_of_stream_lose_no_line(avr):
    """Ten minutes of the board's time; three to five of the processor's."""
    with avr("strict") as board:
        output, read = bytearray(), board.read

        def note(now_us):
            data = read(now_us)
            output.extend(data)
            return data

        board.read = note
        robot = VirtualRobot(board, step_us=11_400)
        robot.advance(0.2)
        for i in range(60):
            move(robot, [40 * (-1) ** i] * 6)
            robot.advance(0.2 + 10 * (i + 1))
        lines, counts = robot.core.checked, robot.core.statistics

    assert counts.bad_lines == counts.gaps == counts.restarts == counts.reconnects == 0
    assert counts.lines == pytest.approx(600.2 / 0.0114, rel=0.002) and lines.refused == 0
    numbers = [checked.number for line in output.split(b"\n") if (checked := parse_checked_status(line))]
    assert len(numbers) > 50_000 and all((b - a) % 256 == 1 for a, b in zip(numbers, numbers[1:], strict=False))


@slow
@pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals")
@pytest.mark.parametrize("name", ["v1", "strict"])
def test_the_driver_drives_the_binary_behind_a_terminal_in_real_time(avr, name, tmp_path, monkeypatch):
    monkeypatch.setenv("FEATHERWEIGHT_ROBOT_HOME", str(tmp_path))
    with avr(name, most_step_us=20_000) as board, fwr.PseudoTerminal(board) as terminal:
        config = fwr.UMIRobotConfig(port=terminal.path, sync_speed_deg_s=90)
        with fwr.UMIRobot(config) as robot:
            robot.send_action(dict(zip(fwr.JOINT_KEYS, GOAL, strict=True)))
            wait_for(lambda: robot.reported_deg() == GOAL, 30)
            there = len(board.pulses)  # what was drawn before may belong to the way
            wait_for(lambda: len(board.pulses) > there + 60, 30)
            statistics, checked = robot.statistics, robot.link.core.checked

    assert statistics.bad_lines == 0 and checked is not None
    assert {round(pulse.width_us) for pulse in board.pulses[-60:] if pulse.servo == 0} == {544 + 100 * 1856 // 180}


@slow
@pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals")
@pytest.mark.parametrize("name", ["v1", "strict"])
def test_the_official_client_drives_the_binary(avr, name, tmp_path):
    """The package umirobot (GPL) runs in its own process, from its own folder; nothing of it is imported here."""
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(tmp_path)]
    done = subprocess.run([*install, "umirobot==22.4.28", "pyserial"], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"umirobot cannot be installed: {done.stderr.strip().splitlines()[-1:]}")
    with avr(name, resets_on_open=False, most_step_us=20_000) as board, fwr.PseudoTerminal(board) as terminal:
        board.set_inputs((0, 1023, 512, 300, 700, 10), (1, 0, 1, 1, 0))
        done = subprocess.run(
            [sys.executable, "-c", CLIENT, terminal.path, str(tmp_path)], capture_output=True, text=True, timeout=120
        )
    assert done.returncode == 0, done.stderr
    q, volts, inputs = json.loads(done.stdout.splitlines()[-1])
    assert q == [10, -20, 30, -40, 90, -90] and inputs == [1, 0, 1, 1, 0]
    assert volts == pytest.approx([raw * 5 / 1023 for raw in (0, 1023, 512, 300, 700, 10)])


CLIENT = """
import json, sys, time
sys.path.insert(0, sys.argv[2])
from umirobot import UMIRobot
client = UMIRobot()
client.set_port(sys.argv[1])
end = time.time() + 20
while time.time() < end:
    client.set_qd([10, -20, 30, -40, 95, -95])
    client.update()
    if client.get_q() is not None and list(client.get_q()) == [10, -20, 30, -40, 90, -90]:
        break
print(json.dumps([list(client.get_q()), list(client.get_potentiometer_values()), list(client.get_digital_in_values())]))
"""


def wait_for(condition, seconds):
    """Wait until something is true."""
    end_s = time.monotonic() + seconds
    while time.monotonic() < end_s and not condition():
        time.sleep(0.01)
    assert condition()
