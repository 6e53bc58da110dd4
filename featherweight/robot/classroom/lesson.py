"""What a student does at the own simulator: runs of the challenge, judged, and recorded episodes.

It belongs to the thread of the control loop, which `look` is called from after each step.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from featherweight.errors import FeatherweightError
from featherweight.robot.challenge.judge import Judge
from featherweight.robot.challenge.log import write_log
from featherweight.robot.challenge.score import TIME_LIMIT_S, score_log
from featherweight.robot.network.follower_side import FollowerSide
from featherweight.robot.sim.robot import SimRobot

SETTLED_S = 1.0
"""After all cubes have counted as placed for this long, a run is over."""
FPS = 30
TASK = "put the cubes into the bin"


class Lesson:
    """The challenge and the recordings of one student.

    Args:
        robot: the simulator.
        folder: of the student's logs and data set.
        clock: time in seconds.
    """

    def __init__(self, robot: SimRobot, folder: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._robot, self._folder, self._clock = robot, folder, clock
        self._judge: Judge | None = None
        self._recorder: Any = None
        self._start_s = self._placed_s = 0.0
        self._runs = len(list(folder.glob("run_*.jsonl"))) if folder.exists() else 0
        self._episodes = 0
        self._saver: threading.Thread | None = None
        self._score: dict[str, Any] | None = None
        self._trouble = ""

    def news(self) -> dict[str, Any]:
        """Return what server and page show."""
        return {
            "challenge": self._judge is not None,
            "left": max(0, round(TIME_LIMIT_S - (self._clock() - self._start_s))) if self._judge else 0,
            "runs": self._runs,
            "score": self._score,
            "recording": self._recorder is not None,
            "frames": self._recorder.writer.frames if self._recorder else 0,
            "episodes": self._episodes,
            "trouble": self._trouble,
        }

    def obey(self, request: dict[str, Any], side: FollowerSide) -> None:
        """Begin or end what the page asks for; what fails is one sentence in the news."""
        self._trouble = ""
        try:
            if "challenge" in request and bool(request["challenge"]) != (self._judge is not None):
                self._begin(side) if request["challenge"] else self._end(side)
            if "record" in request and bool(request["record"]) != (self._recorder is not None):
                self._record() if request["record"] else self._save()
        except FeatherweightError as error:
            self._judge = self._recorder = None
            self._trouble = str(error)

    def look(self, side: FollowerSide) -> None:
        """Look at the world, and take a frame if it is time."""
        if self._recorder is not None:
            self._recorder.look(side.controller)
        if self._judge is None:
            return
        now_s, world = self._clock(), self._robot.world
        with world.lock:
            gripper_deg = self._robot.reported_deg()[-1] if self._robot.is_streaming else 0.0
            self._judge.look(now_s - self._start_s, side.controller, gripper_deg)
        self._placed_s = self._placed_s if self._judge.is_complete else now_s
        if now_s - self._start_s >= TIME_LIMIT_S or now_s - self._placed_s >= SETTLED_S:
            try:
                self._end(side)
            except FeatherweightError as error:
                self._judge, self._trouble = None, str(error)

    def close(self) -> None:
        """Wait for an episode that is being saved."""
        if self._saver is not None:
            self._saver.join()

    def _begin(self, side: FollowerSide) -> None:
        self._runs += 1
        self._robot.world.lay_out(self._runs)
        side.controller.counters["guard trips"] = 0
        self._start_s = self._placed_s = self._clock()
        self._judge = Judge(self._robot.world, self._runs)

    def _end(self, side: FollowerSide) -> None:
        judge, self._judge = self._judge, None
        assert judge is not None
        records = judge.finish(side.controller, side.receiver.delays.round_trip_ms.p50)
        self._score = {**asdict(score_log(records)), "run": self._runs}
        write_log(self._folder / f"run_{self._runs:04d}.jsonl", records)

    def _record(self) -> None:
        from featherweight.robot.recording.layout import robot_features
        from featherweight.robot.recording.recorder import EpisodeRecorder
        from featherweight.robot.recording.writer import DemoWriter

        if self._saver is not None:
            self._saver.join()
        writer = DemoWriter(self._folder / "demos", FPS, "umirobot", robot_features())
        self._episodes = len(writer.rows)
        self._recorder = EpisodeRecorder(writer, self._robot, clock=self._clock)

    def _save(self) -> None:
        writer, self._recorder = self._recorder.writer, None
        if writer.frames == 0:
            writer.discard()
            return

        def save() -> None:
            # Beside the control loop, which must not wait for a disk.
            try:
                writer.save(TASK)
                self._episodes = len(writer.rows)
            except FeatherweightError as error:
                self._trouble = str(error)

        self._saver = threading.Thread(target=save, name="saving")
        self._saver.start()
