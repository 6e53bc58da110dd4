"""A hand that moves and waits: looks, moves, waits until it sees what the move did, corrects.

So do people who know that the line is slow. What it is made of was measured on people, not fitted to this challenge:
- moves follow the minimum-jerk profile (Flash and Hogan 1985) and last longer for larger distances (Fitts 1954);
- a move ends beside its aim by a share of its length (Schmidt et al. 1979), so there are corrective moves (Meyer 1988);
- under delay people move and wait, one round trip and one reaction time for each correction (Ferrell 1965).
"""

import math
from collections.abc import Callable

import numpy as np

from featherweight.robot.challenge.hand import LIFTED_M, REACTION_S, Clock, Hand, Steps, distance, reachable
from featherweight.robot.kinematics.dh import Array
from featherweight.robot.kinematics.inverse import table_top
from featherweight.robot.kit import ARM_JOINTS
from featherweight.robot.sim.expert import (
    CARRY_M,
    CLOSED_DEG,
    DROP_M,
    GRASP_M,
    HOVER_M,
    JOINT_SPEED_DEG_S,
    OPEN_DEG,
    RATE_HZ,
)

ENDPOINT_SHARE = 0.08
"""Deviation, to each side, of where a move ends, as a share of its length."""
OVER_CUBE_M, OVER_BIN_M = 0.006, 0.015
"""What looks well enough aimed; a gripper of 50 mm leaves 14 beside a cube of 22."""
REST_S, REST_DEG, LONGEST_LOOK_S = 0.25, 0.5, 3.0
MOST_MOVES = 8
"""Corrections of one aim before everything is looked at anew."""


class PatientHand(Hand):
    """A scripted person who moves and waits; see the top of the file, and `Hand` for arguments."""

    name = id = "hand"

    def __init__(self, see: Callable[[], Array], clock: Clock, seed: int = 0) -> None:
        super().__init__(see, clock, seed)
        self._start_deg = tuple(map(float, self.hand_deg))
        self.moves = 0
        """Moves so far, corrections among them."""

    def work(self) -> Steps:
        """See `Hand`."""
        while True:
            yield from self.wait(REACTION_S)
            scene = self.see()
            if distance(scene[:2], scene[5:7]) < 0.04 and scene[2] < 0.04:
                continue  # it lies in the bin
            yield from self._pick()
            yield from self._look()
            if self.see()[2] < LIFTED_M:
                continue
            yield from self._aim(lambda: self.see()[5:7], CARRY_M, CLOSED_DEG, OVER_BIN_M)
            yield from self._move(self.point()[:2], DROP_M, CLOSED_DEG)
            yield from self._look()
            yield from self.turn_gripper(OPEN_DEG)
            yield from self._move(self.point()[:2], CARRY_M, OPEN_DEG)
            yield from self._look()

    def _pick(self) -> Steps:
        """Aim above the cube, go down, aim again if it does not look right, and lift."""
        for _ in range(MOST_MOVES):
            yield from self._aim(lambda: self.see()[:2], HOVER_M, OPEN_DEG, OVER_CUBE_M)
            yield from self._move(self.point()[:2], GRASP_M, OPEN_DEG)
            yield from self._look()
            if distance(self.judge(self.see()[:2]), self.seen_tool()[:2]) < 1.5 * OVER_CUBE_M:
                break
            yield from self._move(self.point()[:2], HOVER_M, OPEN_DEG)
        yield from self.turn_gripper(CLOSED_DEG)
        yield from self._move(self.point()[:2], CARRY_M, CLOSED_DEG)

    def _aim(self, target: Callable[[], Array], height_m: float, gripper_deg: float, good_m: float) -> Steps:
        """Move until the tool is seen over a target."""
        if self.point()[2] < height_m - 0.01:
            yield from self._move(self.point()[:2], height_m, gripper_deg)
        yield from self._move(self.judge(target()), height_m, gripper_deg)
        for _ in range(MOST_MOVES):
            yield from self._look()
            off = self.judge(target()) - self.seen_tool()[:2]
            if np.linalg.norm(off) < good_m:
                return
            yield from self._move(self.point()[:2] + off, height_m, gripper_deg)

    def _move(self, to_m: Array, height_m: float, gripper_deg: float) -> Steps:
        """Move to a place over the table; the end is beside the aim by a share of the way."""
        length_m = float(np.linalg.norm([*(to_m - self.point()[:2]), height_m - self.point()[2]]))
        place = reachable(to_m + self.random.normal(0, ENDPOINT_SHARE * length_m, 2))
        joints = table_top(np.array([*place, height_m]))
        if joints is None:
            return
        self.moves += 1
        assert self.seen_deg is not None
        self._start_deg = self.seen_deg
        start, end = self.hand_deg, np.array([*np.degrees(joints), gripper_deg])
        duration_s = max(
            0.3 + 0.15 * math.log2(1 + length_m / 0.01),
            # The fastest instant of the profile is 1.875 times its mean.
            1.875 * float(np.abs(end - start)[:ARM_JOINTS].max()) / JOINT_SPEED_DEG_S,
        )
        count = math.ceil(duration_s * RATE_HZ)
        for i in range(1, count + 1):
            t = i / count
            yield start + (end - start) * (10 * t**3 - 15 * t**4 + 6 * t**5)

    def _look(self) -> Steps:
        """Wait until the arm was seen to move and to come to rest, then for the reaction time."""
        before, still, has_moved = self.seen_deg, 0, False
        for _ in range(round(LONGEST_LOOK_S * RATE_HZ)):
            yield self.hand_deg
            now = self.seen_deg
            assert before is not None and now is not None
            # The arm alone: on a slow line the gripper is seen to close, and to rest, before the arm is seen to lift.
            has_moved |= _apart(now[:ARM_JOINTS], self._start_deg[:ARM_JOINTS]) > REST_DEG
            still = still + 1 if _apart(now, before) <= REST_DEG else 0
            before = now
            if has_moved and still >= REST_S * RATE_HZ:
                break
        yield from self.wait(REACTION_S)


def _apart(one_deg: tuple[float, ...], other_deg: tuple[float, ...]) -> float:
    return max(abs(a - b) for a, b in zip(one_deg, other_deg, strict=True))
