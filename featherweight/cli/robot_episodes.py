"""What `fw robot record` does with episodes: one after the other, here or in a room."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featherweight.cli.robot_devices import check_room, make_leader

if TYPE_CHECKING:
    from featherweight.robot.contract import Teleoperator
    from featherweight.robot.recording.writer import DemoWriter


@dataclass(frozen=True)
class Length:
    """How many episodes, how long, of what."""

    episodes: int
    seconds: float
    fps: int
    task: str


def record_episodes(
    writer: "DemoWriter", leader: "Teleoperator", length: Length, run_episode: Callable[[Callable[[], bool]], None]
) -> dict[str, Any]:
    """Record episodes; one that is broken off is forgotten, and ends the recording.

    Args:
        writer: of the data set.
        leader: connected.
        length: of the recording.
        run_episode: records frames for as long as the function that it is given returns True, or until Ctrl-C.
    """
    most, saved, tried = round(length.seconds * length.fps), 0, 0
    while tried < length.episodes:
        tried += 1
        words = f"{length.seconds:g} s from when the arm follows; Ctrl-C ends"
        print(f"Episode {tried} of {length.episodes}: {words}.", flush=True)
        run_episode(lambda: writer.frames < most and not getattr(leader, "is_left", False))
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
        time.sleep(0.2)
    return {"saved": saved, "tried": tried, "total": len(writer.rows)}


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

            def run_episode(is_going_on: Callable[[], bool]) -> None:
                recorder, stop = EpisodeRecorder(writer, view, view.pictures, view.extra), threading.Event()

                def on_step(_: OperatorSide) -> None:
                    recorder.look(view)
                    if not is_going_on():
                        stop.set()

                try:
                    side.run(stop, on_step=on_step)
                except KeyboardInterrupt:
                    pass

            result = record_episodes(writer, device, length, run_episode)
            time.sleep(0.1)
            return result
    finally:
        transport.close()
