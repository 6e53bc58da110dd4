"""A hand that a policy helps."""

import math
from collections.abc import Mapping

from featherweight.robot.contract import Action, Teleoperator
from featherweight.robot.kit import ARM_JOINTS, JOINT_KEYS

SHARE, AGREEMENT_DEG = 0.7, 12.0
"""Largest share of the policy, and the difference of a joint at which it has fallen to a third of that."""


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
