"""A model of a person at the leader: looks, moves, waits until it sees what the move did, corrects.

What it is made of was measured on people, not fitted to this challenge:
- moves follow the minimum-jerk profile (Flash and Hogan 1985) and last longer for larger distances (Fitts 1954);
- a move ends beside its aim by a share of its length (Schmidt et al. 1979), so there are corrective moves (Meyer 1988);
- under delay people move and wait, one round trip and one reaction time for each correction (Ferrell 1965).
"""

import math
from collections.abc import Callable, Generator, Mapping

import numpy as np

from featherweight.robot.contract import Action, Teleoperator, keyed_angles, ordered_angles
from featherweight.robot.kinematics.dh import Array, tool_point
from featherweight.robot.kinematics.inverse import table_top
from featherweight.robot.kit import ARM_JOINTS, JOINT_KEYS
from featherweight.robot.sim.expert import (
    CARRY_M,
    CLOSED_DEG,
    DROP_M,
    GRASP_M,
    GRIP_S,
    HOVER_M,
    JOINT_SPEED_DEG_S,
    OPEN_DEG,
    RATE_HZ,
)

Clock = Callable[[], float]
Steps = Generator[Array, None, None]
"""(6,) degrees, one for each 1 / `RATE_HZ`."""
REACTION_S = 0.25
"""From seeing to acting."""
SEEING_M, ENDPOINT_SHARE = 0.002, 0.08
"""Deviation of where something is seen to be, to each side, and of where a move ends, as a share of its length."""
OVER_CUBE_M, OVER_BIN_M = 0.006, 0.015
"""What looks well enough aimed; a gripper of 50 mm leaves 14 beside a cube of 22."""
LIFTED_M, REST_S, REST_DEG, LONGEST_LOOK_S = 0.03, 0.25, 0.5, 3.0
MOST_MOVES = 8
"""Corrections of one aim before everything is looked at anew."""


class HandModel(Teleoperator):
    """A scripted person; see the top of the file.

    Args:
        see: returns the (7,) scene, as late as the network makes it.
        clock: time in seconds.
        seed: of what it misjudges.
    """

    name = id = "hand"

    def __init__(self, see: Callable[[], Array], clock: Clock, seed: int = 0) -> None:
        self._see, self._clock = see, clock
        self._random = np.random.default_rng(seed)
        self._seen_deg: tuple[float, ...] | None = None
        self._hand_deg = np.zeros(len(JOINT_KEYS))
        self._start_deg: tuple[float, ...] = (0.0,) * len(JOINT_KEYS)
        self._steps: Steps | None = None
        self._due_s = 0.0
        self._is_connected = False
        self.moves = 0
        """Moves so far, corrections among them."""

    @property
    def is_connected(self) -> bool:
        """Whether the hand is there."""
        return self._is_connected

    def connect(self, calibrate: bool = True) -> None:
        """Take the leader into the hand."""
        self._is_connected = True

    def disconnect(self) -> None:
        """Let it go."""
        self._is_connected = False

    def send_feedback(self, feedback: Mapping[str, float]) -> None:
        """See where the arm is."""
        self._seen_deg = ordered_angles("HandModel.send_feedback", feedback)

    def get_action(self) -> Action | None:
        """Return where the hand is now."""
        self._require_connection("get_action")
        if self._seen_deg is None:
            return None
        if self._steps is None:
            self._hand_deg = np.array(self._seen_deg)
            self._steps, self._due_s = self._work(), self._clock()
        while self._clock() >= self._due_s - 1e-6:
            self._hand_deg = next(self._steps)
            self._due_s += 1 / RATE_HZ
        return keyed_angles(tuple(map(float, self._hand_deg)))

    # ---- what it does, one step at a time -------------------------------------------------------------------------

    def _work(self) -> Steps:
        while True:
            yield from self._wait(REACTION_S)
            scene = self._see()
            if _distance(scene[:2], scene[5:7]) < 0.04 and scene[2] < 0.04:
                continue  # it lies in the bin
            yield from self._pick()
            yield from self._look()
            if self._see()[2] < LIFTED_M:
                continue
            yield from self._aim(lambda: self._see()[5:7], CARRY_M, CLOSED_DEG, OVER_BIN_M)
            yield from self._move(self._point()[:2], DROP_M, CLOSED_DEG)
            yield from self._look()
            yield from self._turn_gripper(OPEN_DEG)
            yield from self._move(self._point()[:2], CARRY_M, OPEN_DEG)
            yield from self._look()

    def _pick(self) -> Steps:
        """Aim above the cube, go down, aim again if it does not look right, and lift."""
        for _ in range(MOST_MOVES):
            yield from self._aim(lambda: self._see()[:2], HOVER_M, OPEN_DEG, OVER_CUBE_M)
            yield from self._move(self._point()[:2], GRASP_M, OPEN_DEG)
            yield from self._look()
            if _distance(self._judge(self._see()[:2]), self._seen_tool()[:2]) < 1.5 * OVER_CUBE_M:
                break
            yield from self._move(self._point()[:2], HOVER_M, OPEN_DEG)
        yield from self._turn_gripper(CLOSED_DEG)
        yield from self._move(self._point()[:2], CARRY_M, CLOSED_DEG)

    def _aim(self, target: Callable[[], Array], height_m: float, gripper_deg: float, good_m: float) -> Steps:
        """Move until the tool is seen over a target."""
        if self._point()[2] < height_m - 0.01:
            yield from self._move(self._point()[:2], height_m, gripper_deg)
        yield from self._move(self._judge(target()), height_m, gripper_deg)
        for _ in range(MOST_MOVES):
            yield from self._look()
            off = self._judge(target()) - self._seen_tool()[:2]
            if np.linalg.norm(off) < good_m:
                return
            yield from self._move(self._point()[:2] + off, height_m, gripper_deg)

    def _move(self, to_m: Array, height_m: float, gripper_deg: float) -> Steps:
        """Move to a place over the table; the end is beside the aim by a share of the way."""
        length_m = float(np.linalg.norm([*(to_m - self._point()[:2]), height_m - self._point()[2]]))
        place = to_m + self._random.normal(0, ENDPOINT_SHARE * length_m, 2)
        radius = float(np.linalg.norm(place))
        place *= min(max(radius, 0.108), 0.25) / max(radius, 1e-6)
        joints = table_top(np.array([*place, height_m]))
        if joints is None:
            return
        self.moves += 1
        assert self._seen_deg is not None
        self._start_deg = self._seen_deg
        start, end = self._hand_deg, np.array([*np.degrees(joints), gripper_deg])
        duration_s = max(
            0.3 + 0.15 * math.log2(1 + length_m / 0.01),
            # The fastest instant of the profile is 1.875 times its mean.
            1.875 * float(np.abs(end - start)[:ARM_JOINTS].max()) / JOINT_SPEED_DEG_S,
        )
        count = math.ceil(duration_s * RATE_HZ)
        for i in range(1, count + 1):
            t = i / count
            yield start + (end - start) * (10 * t**3 - 15 * t**4 + 6 * t**5)

    def _turn_gripper(self, gripper_deg: float) -> Steps:
        end = np.array([*self._hand_deg[:ARM_JOINTS], gripper_deg])
        for _ in range(round((GRIP_S + (OPEN_DEG - CLOSED_DEG) / 88) * RATE_HZ)):
            yield end

    def _wait(self, duration_s: float) -> Steps:
        for _ in range(round(duration_s * RATE_HZ)):
            yield self._hand_deg

    def _look(self) -> Steps:
        """Wait until the arm was seen to move and to come to rest, then for the reaction time."""
        before, still, has_moved = self._seen_deg, 0, False
        for _ in range(round(LONGEST_LOOK_S * RATE_HZ)):
            yield self._hand_deg
            now = self._seen_deg
            assert before is not None and now is not None
            has_moved |= _apart(now, self._start_deg) > REST_DEG
            still = still + 1 if _apart(now, before) <= REST_DEG else 0
            before = now
            if has_moved and still >= REST_S * RATE_HZ:
                break
        yield from self._wait(REACTION_S)

    # ---- what it believes -----------------------------------------------------------------------------------------

    def _point(self) -> Array:
        """Return (3,) where the hand itself wants the tool."""
        return tool_point(np.radians(self._hand_deg[:ARM_JOINTS]))

    def _seen_tool(self) -> Array:
        assert self._seen_deg is not None
        return tool_point(np.radians(self._seen_deg[:ARM_JOINTS]))

    def _judge(self, place_m: Array) -> Array:
        """Return (2,) where something is seen to be."""
        result: Array = place_m + self._random.normal(0, SEEING_M, 2)
        return result


def _distance(one_m: Array, other_m: Array) -> float:
    return float(np.linalg.norm(one_m - other_m))


def _apart(one_deg: tuple[float, ...], other_deg: tuple[float, ...]) -> float:
    return max(abs(a - b) for a, b in zip(one_deg, other_deg, strict=True))
