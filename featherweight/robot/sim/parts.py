"""What a set of real parts gives the simulator in place of its primitive shapes: meshes, masses, a gripper."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class ArmParts:
    """Texts of MJCF for the arm, and the files that they name.

    Attributes:
        assets: name of a file -> its bytes.
        asset: meshes, for the asset section.
        bodies: geometry and inertia of the base and of links 1 to 5, each in the frame of its body.
        hand: bodies, sites and joints at the end of link 5; the joint of servo 6 is "j6".
        extra: what couples the fingers, beside the bodies.
    """

    assets: Mapping[str, bytes]
    asset: str
    bodies: tuple[str, ...]
    hand: str
    extra: str
