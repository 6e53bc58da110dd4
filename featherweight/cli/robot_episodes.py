"""What `fw robot record` does with episodes: one after the other, here or in a room."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featherweight.cli.robot_devices import check_room, make_leader
from featherweight.errors import DeviceError

if TYPE_CHECKING:
    from featherweight.robot.contract import Teleoperator
    from featherweight.robot.driver.umirobot import UMIRobot
    from featherweight.robot.recording.recorder import EpisodeRecorder
    from featherweight.robot.recording.writer import DemoWriter

BACK_S = 60.0
"""How long recording waits for a camera that was lost."""


@dataclass(frozen=True)
class Length:
    """How many episodes, how long, of what."""

    episodes: int
    seconds: float
    fps: int
    task: str


def record_episodes(
    writer: "DemoWriter",
    leader: "Teleoperator",
    length: Length,
    run_episode: Callable[[Callable[["EpisodeRecorder"], bool]], "EpisodeRecorder"],
    lost: Callable[[str], str] = lambda name: "",
) -> dict[str, Any]:
    """Record episodes; one that is broken off is forgotten and ends the recording, one that lost a camera is repeated.

    Args:
        writer: of the data set.
        leader: connected.
        length: of the recording.
        run_episode: records frames for as long as the function that it is given returns True, or until Ctrl-C; returns
            the episode's recorder.
        lost: returns why a camera has no picture now; empty when it has one.
    Raises:
        DeviceError: if a camera does not come back; every finished episode is kept.
    """
    most, saved, tried = round(length.seconds * length.fps), 0, 0

    def is_going_on(recorder: "EpisodeRecorder") -> bool:
        return writer.frames < most and not recorder.missing and not getattr(leader, "is_left", False)

    while saved < length.episodes:
        tried += 1
        words = f"{length.seconds:g} s from when the arm follows; Ctrl-C ends"
        print(f"Episode {saved + 1} of {length.episodes}: {words}.", flush=True)
        recorder = run_episode(is_going_on)
        if recorder.missing and writer.frames < most:
            writer.discard()
            _wait_for_camera(recorder.missing, lost, saved)
            continue
        if writer.frames < most:
            writer.discard()
            break
        number = writer.save(length.task)
        saved += 1
        print(f"Episode saved as {number}.", flush=True)
        if writer.repeated_pictures:
            print(
                f"The encoder was too slow for {writer.repeated_pictures} pictures; the ones before them stand there."
            )
        for name, count in recorder.repeated.items():
            if count > most / 10:
                print(
                    f"Camera {name} is slower than {length.fps} frames a second: {count} of {most} show the picture "
                    "before."
                )
        time.sleep(0.2)
    return {"saved": saved, "tried": tried, "total": len(writer.rows)}


def _wait_for_camera(name: str, lost: Callable[[str], str], saved: int) -> None:
    """Wait until a camera has pictures again.

    Raises:
        DeviceError: if it has none after a minute.
    """
    why, end_s = lost(name) or f"camera {name} gave no picture", time.monotonic() + BACK_S
    print(f"This episode is given up, the arm is held: {why}. Waiting for the camera.", flush=True)
    while lost(name):
        if time.monotonic() > end_s:
            raise DeviceError(
                f"fw robot record: camera={name} has not come back within {BACK_S:g} s ({lost(name)}); expected its "
                f"pictures. The {saved} finished episodes are kept: look at its cable and record the others."
            )
        time.sleep(0.1)


def record_by_hand(robot: "UMIRobot", leader_name: str, port: str, out: Path, length: Length) -> dict[str, Any]:
    """Drive a robot of this computer, and record it."""
    from featherweight.robot.recording.layout import robot_features
    from featherweight.robot.recording.recorder import EpisodeRecorder
    from featherweight.robot.recording.writer import DemoWriter
    from featherweight.robot.teleoperation import teleoperate

    cameras = {key: shape[:2] for key, shape in robot.observation_features.items() if isinstance(shape, tuple)}
    writer = DemoWriter(out, length.fps, "umirobot", robot_features(), cameras)
    device = make_leader(leader_name, port, robot)

    def run_episode(is_going_on: Callable[[EpisodeRecorder], bool]) -> EpisodeRecorder:
        recorder = EpisodeRecorder(writer, robot, robot.pictures)

        def on_step(controller: Any) -> bool:
            recorder.look(controller)
            return is_going_on(recorder)

        teleoperate(device, robot, on_step=on_step)
        return recorder

    with device:
        return record_episodes(writer, device, length, run_episode, lambda name: robot.camera_troubles().get(name, ""))


def record_in_room(
    room: str,
    address: str,
    class_folder: Path,
    name: str | None,
    robot: str,
    leader_name: str,
    port: str,
    out: Path,
    cameras: list[str],
    length: Length,
) -> dict[str, Any]:
    """Drive a robot of a room, and record what was sent and what came back."""
    from featherweight.robot.network.connect import connect, find_membership
    from featherweight.robot.network.operator_side import OperatorSide
    from featherweight.robot.network.topics import Topics
    from featherweight.robot.recording.layout import robot_features
    from featherweight.robot.recording.recorder import EpisodeRecorder
    from featherweight.robot.recording.room import RoomView, wait_for_cameras
    from featherweight.robot.recording.writer import DemoWriter

    member = find_membership(class_folder, name, "operator")
    check_room(room, member.room)
    device = make_leader(leader_name, port, None)
    transport = connect(address, member)
    try:
        with device:
            side = OperatorSide(device, transport, Topics(room, robot), member.name, member.role == "instructor")
            view = RoomView(side)
            sizes = wait_for_cameras(side, cameras)
            features = robot_features({"observation.rtt_ms": {"dtype": "float32", "shape": [1], "names": None}})
            writer = DemoWriter(out, length.fps, "umirobot", features, sizes)

            def run_episode(is_going_on: Callable[[EpisodeRecorder], bool]) -> EpisodeRecorder:
                recorder, stop = EpisodeRecorder(writer, view, view.pictures, view.extra), threading.Event()

                def on_step(_: OperatorSide) -> None:
                    recorder.look(view)
                    if not is_going_on(recorder):
                        stop.set()

                try:
                    side.run(stop, on_step=on_step)
                except KeyboardInterrupt:
                    pass
                return recorder

            def lost(name: str) -> str:
                return "" if name in view.pictures() else f"camera {name} of the robot sends no pictures"

            result = record_episodes(writer, device, length, run_episode, lost)
            time.sleep(0.1)
            return result
    finally:
        transport.close()
