"""Operators of a challenge: a model of a hand that looks, moves and waits, and a hand that a policy helps."""

import math
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from featherweight.errors import ConfigError
from featherweight.robot.contract import Action, Teleoperator, keyed_angles, ordered_angles
from featherweight.robot.kinematics.dh import Array
from featherweight.robot.kit import ARM_JOINTS, JOINT_KEYS
from featherweight.robot.sim.expert import RATE_HZ, pick_and_place

Clock = Callable[[], float]
REACTION_S = 0.25
"""Time from seeing to acting of a hand."""
SLIP_M = 0.006
"""Deviation of where a hand believes a cube to be, to each side; a gripper of 50 mm takes 14 beside a cube of 22."""
SHARE, AGREEMENT_DEG = 0.7, 12.0
"""Largest share of the policy, and the difference of a joint at which it has fallen to a third of that."""


class HandModel(Teleoperator):
    """A scripted human: looks, waits for its reaction time, makes the whole move that it has planned, looks again.

    This is the move-and-wait of people under delay (Ferrell 1965). The place of a cube is misjudged anew for every try.

    Args:
        see: returns the (7,) scene, as late as the network makes it.
        clock: time in seconds.
        seed: of the misjudgements.
    """

    name = id = "hand"

    def __init__(self, see: Callable[[], Array], clock: Clock, seed: int = 0) -> None:
        self._see, self._clock = see, clock
        self._random = np.random.default_rng(seed)
        self._angles_deg: tuple[float, ...] | None = None
        self._moves: Iterator[Array] | None = None
        self._due_s = self._look_s = 0.0
        self._is_connected = False
        self.tries = 0

    @property
    def is_connected(self) -> bool:
        """Whether the hand is there."""
        return self._is_connected

    def connect(self, calibrate: bool = True) -> None:
        """Take the leader into the hand."""
        self._is_connected, self._look_s = True, self._clock() + REACTION_S

    def disconnect(self) -> None:
        """Let it go."""
        self._is_connected = False

    def send_feedback(self, feedback: Mapping[str, float]) -> None:
        """See where the arm is."""
        if self._angles_deg is None:
            self._angles_deg = ordered_angles("HandModel.send_feedback", feedback)

    def get_action(self) -> Action | None:
        """Return where the hand is now."""
        self._require_connection("get_action")
        if self._angles_deg is None:
            return None
        now_s = self._clock()
        if self._moves is None and now_s >= self._look_s:
            self._plan(now_s)
        while self._moves is not None and now_s >= self._due_s:
            move = next(self._moves, None)
            if move is None:
                # The move is made; what it did is seen after the delay and the reaction time.
                self._moves, self._look_s = None, now_s + REACTION_S + 1.0
                break
            self._angles_deg = tuple(map(float, move))
            self._due_s += 1 / RATE_HZ
        return keyed_angles(self._angles_deg)

    def _plan(self, now_s: float) -> None:
        scene, slip = self._see(), self._random.normal(0, SLIP_M, 2)
        cube, bin_m = np.array([scene[0] + slip[0], scene[1] + slip[1], scene[2]]), np.array([*scene[5:7], 0.0])
        try:
            self._moves = iter(list(pick_and_place(cube, bin_m, np.array(self._angles_deg))))
        except ConfigError:  # out of reach: look again
            self._look_s = now_s + 1.0
            return
        self._due_s = now_s
        self.tries += 1


class SharedLeader(Teleoperator):
    """A hand that a policy helps: a = (1 - b) hand + b policy, where b is large while the two agree.

    So the policy corrects the last millimetres and never takes the arm somewhere else.

    Args:
        hand: leads.
        policy: helps.
    """

    name = id = "shared"

    def __init__(self, hand: Teleoperator, policy: Teleoperator) -> None:
        self._hand, self._policy = hand, policy

    @property
    def is_connected(self) -> bool:
        """Whether both are there."""
        return self._hand.is_connected and self._policy.is_connected

    def connect(self, calibrate: bool = True) -> None:
        """Begin."""
        self._hand.connect(calibrate)
        self._policy.connect(calibrate)

    def disconnect(self) -> None:
        """End."""
        self._hand.disconnect()
        self._policy.disconnect()

    def send_feedback(self, feedback: Mapping[str, float]) -> None:
        """Say where the arm is, to both."""
        self._hand.send_feedback(feedback)
        self._policy.send_feedback(feedback)

    def get_action(self) -> Action | None:
        """Return the blend; the hand alone while the policy has no action, and nothing while the hand has none."""
        hand, policy = self._hand.get_action(), self._policy.get_action()
        if hand is None or policy is None:
            return hand
        apart = max(abs(hand[key] - policy[key]) for key in list(hand)[:ARM_JOINTS])
        share = SHARE * math.exp(-((apart / AGREEMENT_DEG) ** 2))
        gripper = JOINT_KEYS[-1]
        blend = {key: (1 - share) * hand[key] + share * policy[key] for key in hand}
        # To grasp and to let go stays with the hand.
        return {**blend, gripper: hand[gripper]}
