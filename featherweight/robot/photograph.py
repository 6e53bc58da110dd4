"""Pictures of a real arm in chosen poses: it goes there slowly, stands still, and the camera's next picture is kept."""

import time
from collections.abc import Callable, Sequence

from featherweight.errors import DeviceError
from featherweight.robot.camera.live import Picture
from featherweight.robot.driver.umirobot import UMIRobot
from featherweight.robot.kinematics.dh import Array
from featherweight.robot.leaders.scripted import ScriptedLeader
from featherweight.robot.safety.config import SafetyConfig
from featherweight.robot.safety.controller import Controller
from featherweight.robot.safety.mode import Mode
from featherweight.robot.teleoperation import teleoperate

SPEED_DEG_S = 30.0
REST_S = 1.2
"""The arm trembles for less, and no picture that counts as fresh is older."""
NEAR_DEG, LONGEST_S = 1.0, 30.0
"""How near the reported angles have to be to a pose, and the longest time to one."""


def photograph(
    robot: UMIRobot,
    camera: str,
    poses_deg: Array | Sequence[Sequence[float]],
    on_picture: Callable[[int], None] | None = None,
    longest_s: float = LONGEST_S,
) -> tuple[list[list[float]], list[Picture]]:
    """Take one picture of each pose; the arm goes through the same limits and guard as behind a leader.

    Args:
        robot: connected.
        camera: one of its cameras.
        poses_deg: (n, 6) degrees, each of which the guard lets be reached from the one before.
        on_picture: called with how many pictures there are.
        longest_s: for each of them.
    Returns:
        n times (5,) reported degrees, and n pictures (H, W, 3).
    Raises:
        DeviceError: if a pose is not reached or the camera gives no picture there; the arm is held.
    """
    round_ = _Round(robot, camera, [tuple(map(float, pose)) for pose in poses_deg], longest_s)
    with ScriptedLeader(lambda _: round_.pose_deg) as leader:

        def on_step(controller: Controller) -> bool:
            before = len(round_.pictures)
            is_going_on = round_.look(controller)
            if on_picture is not None and len(round_.pictures) > before:
                on_picture(len(round_.pictures))
            return is_going_on

        teleoperate(leader, robot, safety=SafetyConfig(max_speed_deg_s=SPEED_DEG_S), on_step=on_step)
    if len(round_.pictures) < len(round_.poses_deg):
        raise DeviceError(
            f"camera: pose={[round(angle) for angle in round_.pose_deg]} has no picture "
            f"({round_.why or 'broken off'}); expected the arm there and a picture within {longest_s:g} s. "
            f"{len(round_.pictures)} of {len(round_.poses_deg)} were taken: free its way, look at the camera, and "
            "begin again."
        )
    return round_.angles_deg, round_.pictures


class _Round:
    """Where a round through poses stands."""

    def __init__(self, robot: UMIRobot, camera: str, poses_deg: list[tuple[float, ...]], longest_s: float) -> None:
        self.poses_deg, self.angles_deg, self.pictures = poses_deg, list[list[float]](), list[Picture]()
        self.why = ""
        self._robot, self._camera, self._longest_s = robot, camera, longest_s
        self._begin_s, self._there_s = time.monotonic(), None  # type: float, float | None

    @property
    def pose_deg(self) -> tuple[float, ...]:
        """(6,) where the arm shall be."""
        return self.poses_deg[min(len(self.pictures), len(self.poses_deg) - 1)]

    def look(self, controller: Controller) -> bool:
        """Take a picture if it is time; return whether the round goes on."""
        now_s, robot = time.monotonic(), self._robot
        reported_deg = robot.reported_deg() if robot.is_streaming else None
        is_there = (
            reported_deg is not None
            and controller.mode is Mode.ACTIVE
            and max(abs(is_ - shall) for is_, shall in zip(reported_deg, self.pose_deg, strict=True)) <= NEAR_DEG
        )
        self._there_s = (now_s if self._there_s is None else self._there_s) if is_there else None
        if self._there_s is None:
            self.why = controller.modes.reason or "the arm is still on its way"
        elif now_s - self._there_s > REST_S:
            picture = robot.pictures().get(self._camera)
            self.why = robot.camera_troubles().get(self._camera, "")
            if picture is not None and reported_deg is not None:
                self.angles_deg.append(list(reported_deg[:5]))
                self.pictures.append(picture)
                self._begin_s, self._there_s = now_s, None
                return len(self.pictures) < len(self.poses_deg)
        return now_s - self._begin_s < self._longest_s
