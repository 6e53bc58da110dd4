"""A hand that never waits: it steers by what it sees now, as on a quick line, and overshoots where the line is slow.

So do people who do not know, or forget, that the picture is old: continuous control under delay swings about its aim
(Sheridan and Ferrell 1963), which moving and waiting avoids. The hand is the crossover model of manual control (McRuer
and Jex 1967): the rate is the error, seen one reaction ago, times a gain. People choose it so that about 45 degrees of
phase are left; this hand chose it on a line without delay and keeps it. Nothing of it was fitted to this challenge.
"""

import functools
import math
from collections import deque
from collections.abc import Callable, Generator

import numpy as np

from featherweight.robot.challenge.hand import LIFTED_M, REACTION_S, Clock, Hand, Steps, distance, reachable
from featherweight.robot.kinematics.dh import Array
from featherweight.robot.kinematics.inverse import table_top
from featherweight.robot.sim.expert import CARRY_M, CLOSED_DEG, DROP_M, GRASP_M, HOVER_M, OPEN_DEG, RATE_HZ

ARM_LAG_S = 0.1
"""Of arm, control loop and playout, which a hand learns together with its own reaction."""
GAIN_HZ = math.radians(45) / (REACTION_S + ARM_LAG_S)
"""Crossover, 2.2 radians a second: an integrator behind that delay has 45 degrees of phase left there."""
TOP_SPEED_M_S = 0.15
NEAR_M, NEAR_BIN_M, NEAR_HEIGHT_M = 0.006, 0.015, 0.006
"""What looks well enough aimed, beside and in height."""
DWELL_S, LONGEST_S = 0.2, 15.0
"""How long it has to look so before the hand goes on, and after which time it begins anew."""


class EagerHand(Hand):
    """A scripted person who never waits; see the top of the file, and `Hand` for arguments."""

    name = id = "eager"

    def __init__(self, see: Callable[[], Array], clock: Clock, seed: int = 0) -> None:
        super().__init__(see, clock, seed)
        self._errors: deque[Array] = deque(maxlen=1 + round(REACTION_S * RATE_HZ))

    def work(self) -> Steps:
        """See `Hand`."""
        while True:
            yield from self.wait(REACTION_S)
            scene = self.see()
            if distance(scene[:2], scene[5:7]) < 0.04 and scene[2] < 0.04:
                continue  # it lies in the bin
            over_cube = yield from self._steer(self._cube, HOVER_M, OPEN_DEG, NEAR_M)
            at_cube = over_cube and (yield from self._steer(self._cube, GRASP_M, OPEN_DEG, NEAR_M))
            if not at_cube:
                continue
            yield from self.turn_gripper(CLOSED_DEG)
            yield from self._steer(functools.partial(np.copy, self.point()[:2]), CARRY_M, CLOSED_DEG, NEAR_BIN_M)
            if self.see()[2] < LIFTED_M:
                continue
            if (yield from self._steer(self._bin, CARRY_M, CLOSED_DEG, NEAR_BIN_M)):
                yield from self._steer(self._bin, DROP_M, CLOSED_DEG, NEAR_BIN_M)
            yield from self.turn_gripper(OPEN_DEG)
            yield from self._steer(self._bin, CARRY_M, OPEN_DEG, NEAR_BIN_M)

    def _cube(self) -> Array:
        return self.see()[:2]

    def _bin(self) -> Array:
        return self.see()[5:7]

    def _steer(
        self, target: Callable[[], Array], height_m: float, gripper_deg: float, near_m: float
    ) -> Generator[Array, None, bool]:
        """Steer towards a target until the tool has looked to be there for a moment; return whether it has."""
        self._errors.clear()
        point, good = self.point(), 0
        for _ in range(round(LONGEST_S * RATE_HZ)):
            error = np.array([*self.judge(target()), height_m]) - self.seen_tool()
            self._errors.append(error)
            is_good = np.linalg.norm(error[:2]) < near_m and abs(error[2]) < NEAR_HEIGHT_M
            good = good + 1 if is_good else 0
            if good > DWELL_S * RATE_HZ:
                return True
            if len(self._errors) == self._errors.maxlen:
                rate = GAIN_HZ * self._errors[0]
                rate *= min(1.0, TOP_SPEED_M_S / max(float(np.linalg.norm(rate)), 1e-9))
                point = point + rate / RATE_HZ
                point = np.array([*reachable(point[:2]), max(GRASP_M, point[2])])
            joints = table_top(point)
            yield self.hand_deg if joints is None else np.array([*np.degrees(joints), gripper_deg])
        return False
