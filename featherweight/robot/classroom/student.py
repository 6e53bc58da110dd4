"""The simulator of one student, in a process of its own: ``python -m featherweight.robot.classroom.student ...``.

It is a robot of the room like every other, with a certificate. It ends when its standard input does, so it never
outlives the server that started it, however that one died.
"""

import argparse
import json
import os
import sys
import threading
import time
from collections import deque
from pathlib import Path
from typing import Any

from featherweight.errors import FeatherweightError
from featherweight.robot.classroom.lesson import Lesson
from featherweight.robot.network.connect import connect
from featherweight.robot.network.follower_side import FollowerSide, send_pictures
from featherweight.robot.network.membership import Membership
from featherweight.robot.network.topics import Topics
from featherweight.robot.network.transport import Transport
from featherweight.robot.sim.robot import SimRobot, SimRobotConfig

NEWS_S = 0.1
CAMERA_FPS = 10.0


class Student:
    """A simulator with a lesson, in a room.

    Args:
        robot: connected.
        transport: with the role "robot".
        topics: of the robot.
        folder: of the student's logs and data set.
    """

    def __init__(self, robot: SimRobot, transport: Transport, topics: Topics, folder: Path) -> None:
        self.lesson = Lesson(robot, folder)
        self.side = FollowerSide(robot, transport, topics, views=robot.camera_views)
        self._robot, self._transport, self._topics = robot, transport, topics
        self._requests: deque[dict[str, Any]] = deque(maxlen=16)
        self._news_s = 0.0
        self._pace = (time.monotonic(), float(robot.world.data.time))
        self._real_time = 1.0
        transport.subscribe(topics.instructor, lambda _, message: self._take(message))

    def run(self, stop: threading.Event) -> None:
        """Run until `stop` is set; the arm is held at the end."""
        self.side.run(stop, on_step=self._on_step)
        self.lesson.close()

    def _take(self, message: bytes) -> None:
        request = json.loads(message)
        if isinstance(request, dict) and request.get("type") == "class":
            self._requests.append(request)

    def _on_step(self, side: FollowerSide) -> None:
        while self._requests:
            self.lesson.obey(self._requests.popleft(), side)
        self.lesson.look(side)
        now_s = time.monotonic()
        if now_s - self._news_s >= NEWS_S:
            self._news_s = now_s
            news = {**self.lesson.news(), "real_time": self._measure_pace(now_s), "scene": self._scene()}
            self._transport.publish(self._topics.news, json.dumps(news).encode())

    def _scene(self) -> dict[str, Any]:
        """Return where cubes and bin are, metres in the world, for pages without pictures."""
        world = self._robot.world
        with world.lock:
            cubes = [[round(float(value), 3) for value in world.cube_m(i)] for i in range(len(world.cubes))]
            return {"cubes": cubes, "bin": [round(float(value), 3) for value in world.bin_m]}

    def _measure_pace(self, now_s: float) -> float:
        """Return seconds of the simulation per second, over the last two or more."""
        began_s, began_sim_s = self._pace
        if now_s - began_s >= 2.0:
            sim_s = float(self._robot.world.data.time)
            self._real_time = round((sim_s - began_sim_s) / (now_s - began_s), 3)
            self._pace = (now_s, sim_s)
        return self._real_time


def main(arguments: list[str] | None = None) -> int:
    """Run the simulator of one student until standard input ends."""
    parser = argparse.ArgumentParser(prog="student")
    parser.add_argument("--member", type=Path, required=True)
    parser.add_argument("--relay", required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--cubes", type=int, default=3)
    parser.add_argument("--camera", action="append", default=[])
    given = parser.parse_args(arguments)
    stop = threading.Event()
    threading.Thread(target=_wait_for_end, args=(stop,), daemon=True).start()
    try:
        member = Membership.load(given.member)
        config = {"scene": "challenge", "cubes": given.cubes, "cameras": tuple(given.camera), "camera_fps": CAMERA_FPS}
        with SimRobot(SimRobotConfig.parse(config, where="fw robot class")) as robot:
            transport = connect(given.relay, member)
            topics = Topics(member.room, member.name)
            student = Student(robot, transport, topics, given.folder)
            if given.camera:
                pictures = (robot, transport, topics, stop, CAMERA_FPS)
                threading.Thread(target=send_pictures, args=pictures, daemon=True).start()
            try:
                student.run(stop)
            finally:
                transport.close()
    except FeatherweightError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


def _wait_for_end(stop: threading.Event) -> None:
    # Past Python's own buffer, whose lock a waiting thread would still hold when the interpreter ends.
    while os.read(sys.stdin.fileno(), 1024):
        pass
    stop.set()


if __name__ == "__main__":
    sys.exit(main())
