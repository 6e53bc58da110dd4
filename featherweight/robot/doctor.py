"""What works here and what does not: packages, ports, graphics, and the kit on a port; as a report."""

import importlib.util
import platform
import time

from featherweight.errors import DeviceError, FeatherweightError
from featherweight.report import Report
from featherweight.robot.driver.ports import list_ports, open_serial, probe
from featherweight.robot.driver.umirobot import UMIRobot, UMIRobotConfig
from featherweight.robot.kit import JOINTS

PACKAGES = {
    "serial": "driver (pyserial)",
    "mujoco": "simulator",
    "websockets": "relay over wss://",
    "zenoh": "relay over tls/ (eclipse-zenoh)",
    "cryptography": "certificates",
    "PIL": "pictures (pillow)",
    "mink": "quadratic programs",
    "gymnasium": "environments",
}
CHECKLIST = (
    "Take the arm's jack out: the board alone lights up, and fw robot ports shows it.",
    "Put the jack in with the arm at rest near zero and your hands away: it jumps to the zero pose.",
    "Run fw robot doctor --port PORT --move: every joint goes 5 degrees there and back, one after the other.",
    "A joint that goes the other way: set its sign to -1 in the calibration file.",
    "A joint that is not at zero in the zero pose: measure the angle and set zero_offset_deg.",
    "Pull the USB cable in motion: the arm stops within the look-ahead. Put it back: the arm starts slowly.",
)
"""What a person checks on a real kit."""


def diagnose(port: str | None = None, move: bool = False) -> Report:
    """Look at packages, ports and graphics, and at a kit if a port is given.

    Args:
        port: of a kit, or "sim"; None only lists ports.
        move: move each joint of that kit by 5 degrees there and back.
    """
    report = Report("Robot doctor")
    report.add_facts({"system": platform.platform(), "Python": platform.python_version()}, "Computer")
    rows = []
    for package, purpose in PACKAGES.items():
        is_there = importlib.util.find_spec(package) is not None
        rows.append([package, purpose, "yes" if is_there else "no: pip install featherweight[robot]"])
    report.add_table("Packages", ["package", "for", "installed"], rows)
    report.add_facts({"off-screen pictures": _graphics()}, "Graphics")
    try:
        ports = [
            [info.path, info.description, "likely" if info.is_likely else "", _say(info.path)] for info in list_ports()
        ]
    except FeatherweightError as error:
        ports = [["", "", "", str(error)]]
    report.add_table("Serial ports", ["port", "description", "vendor", "says"], ports)
    if port is not None:
        report.add_facts(_examine(port, move), f"Kit on {port}")
    return report


def _graphics() -> str:
    from featherweight.robot.sim.graphics import INSTALL_GRAPHICS, working_graphics

    if importlib.util.find_spec("mujoco") is None:
        return "no: mujoco is not installed"
    found = working_graphics()
    return f"no: {INSTALL_GRAPHICS}" if found is None else f"yes ({found or 'default'})"


def _say(path: str) -> str:
    try:
        port = open_serial(path)
    except DeviceError as error:
        return str(error)
    try:
        found = probe(port)
        return "a kit" if found.status_lines else found.explain(path, 4.0)
    except OSError as error:
        return f"robot: port={path} broke ({error})"
    finally:
        port.close()


def _examine(path: str, move: bool) -> dict[str, str | int | float]:
    with UMIRobot(UMIRobotConfig(port=path, id="doctor", lookahead_deg="auto", sync_speed_deg_s=90)) as robot:
        time.sleep(1.0)
        facts: dict[str, str | int | float] = {}
        if move:
            for joint in JOINTS:
                facts[f"{joint} moved (deg)"] = _wiggle(robot, f"{joint}.pos")
        statistics = robot.statistics
        facts |= {
            "status lines/s": statistics.lines_per_s,
            "bad lines": statistics.bad_lines,
            "lines from command to effect": statistics.echo_lines or "not measured: add --move",
            "look-ahead for full speed (deg)": robot.link.core.target.lookahead_deg,
        }
        newest = robot.link.newest
        if newest is not None:
            facts["potentiometers (V)"] = " ".join(f"{volt:.2f}" for volt in newest.status.pots_v)
        return facts


def _wiggle(robot: UMIRobot, key: str) -> float:
    """Move one joint by 5 degrees and back; return how far it reported to have gone."""
    start = robot.get_observation()
    step = 5.0 if start[key] <= 80 else -5.0
    farthest = 0.0
    for goal in (start[key] + step, start[key]):
        robot.send_action({**start, key: goal})
        deadline_s = time.monotonic() + 2
        while time.monotonic() < deadline_s:
            now = robot.get_observation()[key]
            farthest = max(farthest, abs(now - start[key]))
            if abs(now - goal) < 0.5:
                break
            time.sleep(0.01)
    return farthest
