"""A gripper of your own. Change it, then: fw robot kit check my_gripper.py; fw robot sim --gripper my_gripper.py

Frame: -y is the direction of the tool, z the axis along which the fingers open, x up at zero; millimetres. This one
keeps palm and gear of the kit and gives the fingers hooks, which hold larger things.
"""

from dataclasses import replace

from featherweight.robot.hardware.dimensions import Dimensions
from featherweight.robot.hardware.gripper import FINGER, FINGER_END, Gripper, build_gripper, front
from featherweight.robot.hardware.solids import Solid, box, union

HOOK = 5.0
"""How far the hooks reach up from the lower edge of a finger."""


def hook() -> Solid:
    """Return a lip below the left finger; closed fingers touch with it."""
    return box((-12, -9 + 0.1), front(FINGER_END - 14, FINGER_END), (0, FINGER + HOOK))


def build(dimensions: Dimensions) -> Gripper:
    """Return the gripper."""
    kit = build_gripper(dimensions)
    left = union([kit.left, hook()])
    right = union([kit.right, hook().mirror([0, 0, 1])])
    return replace(kit, left=left, right=right)
