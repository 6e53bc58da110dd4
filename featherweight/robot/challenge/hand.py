"""What every model of a person at the leader has: eyes that see late and not quite right, and a hand with a gripper.

`patient` and `eager` are two kinds of people: who moves and waits, and who never waits.
"""

from abc import abstractmethod
from collections.abc import Callable, Generator, Mapping

import numpy as np

from featherweight.robot.contract import Action, Teleoperator, keyed_angles, ordered_angles
from featherweight.robot.kinematics.dh import Array, tool_point
from featherweight.robot.kit import ARM_JOINTS, JOINT_KEYS
from featherweight.robot.sim.expert import CLOSED_DEG, GRIP_S, OPEN_DEG, RATE_HZ

Clock = Callable[[], float]
Steps = Generator[Array, None, None]
"""(6,) degrees, one for each 1 / `RATE_HZ`."""
REACTION_S = 0.25
"""From seeing to acting."""
SEEING_M = 0.002
"""Deviation, to each side, of where something is seen to be."""
LIFTED_M = 0.03
"""A cube above this was grasped."""
NEAREST_M, FARTHEST_M = 0.108, 0.25
"""From the base's axis, where the tool can point down."""


class Hand(Teleoperator):
    """A scripted person.

    Args:
        see: returns the (7,) scene, as late as the network makes it.
        clock: time in seconds.
        seed: of what it misjudges.
    """

    def __init__(self, see: Callable[[], Array], clock: Clock, seed: int = 0) -> None:
        self.see, self._clock = see, clock
        self.random = np.random.default_rng(seed)
        self.seen_deg: tuple[float, ...] | None = None
        """(6,) where the arm is seen to be."""
        self.hand_deg = np.zeros(len(JOINT_KEYS))
        """(6,) where the hand is."""
        self._steps: Steps | None = None
        self._due_s = 0.0
        self._is_connected = False

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
        self.seen_deg = ordered_angles("Hand.send_feedback", feedback)

    def get_action(self) -> Action | None:
        """Return where the hand is now."""
        self._require_connection("get_action")
        if self.seen_deg is None:
            return None
        if self._steps is None:
            self.hand_deg = np.array(self.seen_deg)
            self._steps, self._due_s = self.work(), self._clock()
        while self._clock() >= self._due_s - 1e-6:
            self.hand_deg = next(self._steps)
            self._due_s += 1 / RATE_HZ
        return keyed_angles(tuple(map(float, self.hand_deg)))

    @abstractmethod
    def work(self) -> Steps:
        """Yield what the hand does, for ever."""

    def turn_gripper(self, gripper_deg: float) -> Steps:
        """Open or close, for as long as the servo needs."""
        end = np.array([*self.hand_deg[:ARM_JOINTS], gripper_deg])
        for _ in range(round((GRIP_S + (OPEN_DEG - CLOSED_DEG) / 88) * RATE_HZ)):
            yield end

    def wait(self, duration_s: float) -> Steps:
        """Hold still."""
        for _ in range(round(duration_s * RATE_HZ)):
            yield self.hand_deg

    # ---- what it believes -----------------------------------------------------------------------------------------

    def point(self) -> Array:
        """Return (3,) where the hand itself wants the tool."""
        return tool_point(np.radians(self.hand_deg[:ARM_JOINTS]))

    def seen_tool(self) -> Array:
        """Return (3,) where the tool is seen to be."""
        assert self.seen_deg is not None
        return tool_point(np.radians(self.seen_deg[:ARM_JOINTS]))

    def judge(self, place_m: Array) -> Array:
        """Return (2,) where something is seen to be."""
        result: Array = place_m + self.random.normal(0, SEEING_M, 2)
        return result


def distance(one_m: Array, other_m: Array) -> float:
    """Return how far two places are from one another."""
    return float(np.linalg.norm(one_m - other_m))


def reachable(place_m: Array) -> Array:
    """Return the (2,) place over the table that the tool can reach nearest to one, on the same ray."""
    radius = float(np.linalg.norm(place_m))
    result: Array = place_m * (min(max(radius, NEAREST_M), FARTHEST_M) / max(radius, 1e-6))
    return result
