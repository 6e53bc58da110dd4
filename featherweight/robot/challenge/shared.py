"""A hand that a policy helps."""

import math
from collections.abc import Mapping

import numpy as np

from featherweight.robot.contract import Action, Teleoperator, keyed_angles, ordered_angles
from featherweight.robot.kinematics.dh import TOOL_M, Array, jacobian
from featherweight.robot.kit import ARM_JOINTS

SHARE, AGREEMENT_DEG = 0.7, 12.0
"""For a hand that waits until the arm is where it should be."""
SWINGING_SHARE, SWINGING_AGREEMENT_DEG = 0.9, 20.0
"""For one that swings about its aim, by centimetres; chosen on layouts from 20000 on, which no table has."""


class SharedLeader(Teleoperator):
    """A hand that a policy helps: a = (1 - b) hand + b policy, where b is large while the two agree.

    So the policy corrects the last millimetres and never takes the arm somewhere else.

    Args:
        hand: leads.
        policy: helps.
        share: largest share of the policy.
        agreement_deg: difference of a joint at which it has fallen to a third of that.
        keeps_height: of the way from the hand to the policy, only what leaves the tool's height as it is counts. A hand
            that is lowered before it wants to be pulls up, and neither goes on.
    """

    name = id = "shared"

    def __init__(
        self,
        hand: Teleoperator,
        policy: Teleoperator,
        share: float = SHARE,
        agreement_deg: float = AGREEMENT_DEG,
        keeps_height: bool = False,
    ) -> None:
        self._hand, self._policy = hand, policy
        self._share, self._agreement_deg, self._keeps_height = share, agreement_deg, keeps_height

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
        mine, its = (np.array(ordered_angles("SharedLeader", action)) for action in (hand, policy))
        way = its[:ARM_JOINTS] - mine[:ARM_JOINTS]
        if self._keeps_height:
            way = _without_height(mine[:ARM_JOINTS], way)
        share = self._share * math.exp(-((float(np.abs(way).max()) / self._agreement_deg) ** 2))
        # To grasp and to let go stays with the hand.
        mine[:ARM_JOINTS] += share * way
        return keyed_angles(tuple(map(float, mine)))


def _without_height(joints_deg: Array, way_deg: Array) -> Array:
    """Return what is left of a way of the joints when the part of it is taken out that lifts or lowers the tool."""
    lifts = jacobian(np.radians(joints_deg), TOOL_M)[2]
    size = float(lifts @ lifts)
    result: Array = way_deg - lifts * float(lifts @ way_deg) / size if size > 1e-12 else way_deg
    return result
