"""The assembled arm: bodies by the kinematics' numbers, parts and servos in them, and which of them touch."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike

from featherweight.robot.hardware import arm
from featherweight.robot.hardware.dimensions import Dimensions
from featherweight.robot.hardware.gripper import REACH, Gripper, build_gripper
from featherweight.robot.hardware.solids import Solid, placed, rotation, servo_solid, shift, union
from featherweight.robot.kinematics.dh import A_M, ALPHA_RAD, BASE_HEIGHT_M, D_M, OFFSETS_RAD, Array
from featherweight.robot.kit import ARM_JOINTS

BODIES = ("base", "link1", "link2", "link3", "link4", "link5", "pinion", "finger_left", "finger_right")
MEETING = {(0, 1), (1, 2), (2, 3), (3, 4), (4, 5), (5, 6), (5, 7), (5, 8), (6, 7), (6, 8), (7, 8)}
"""Bodies that meet in a joint, in a gear or at closed fingers."""
TURNING_TOGETHER = {(5, 6)}
"""The shaft of servo 6 belongs to body 5 here, and the pinion sits on it."""


@dataclass(frozen=True)
class Piece:
    """A printed part or a servo in an arm.

    Attributes:
        name: of the part.
        body: index into `BODIES`.
        solid: in the frame of its body, in mm.
        mass_g: of the whole piece.
        is_printed: whether it is a printed part.
    """

    name: str
    body: int
    solid: Solid
    mass_g: float
    is_printed: bool


class Assembly:
    """The arm of one set of dimensions.

    Args:
        dimensions: of all parts.
        gripper: another gripper than the kit's own; None for that.
    """

    def __init__(self, dimensions: Dimensions | None = None, gripper: Gripper | None = None) -> None:
        self.dimensions = dimensions or Dimensions()
        self._own_gripper = gripper

    @cached_property
    def gripper(self) -> Gripper:
        """The gripper in the frame of body 5."""
        return self._own_gripper or build_gripper(self.dimensions)

    @cached_property
    def pieces(self) -> list[Piece]:
        """All printed parts of the arm and its six servos."""
        d, hand = self.dimensions, self.gripper
        printed = [
            ("base", 0, arm.base(d)),
            ("turret", 1, arm.turret(d)),
            ("upper_arm", 2, arm.upper_arm(d)),
            ("forearm_bracket", 3, arm.forearm_bracket(d)),
            ("forearm", 4, arm.forearm(d)),
            ("palm", 5, hand.palm),
            ("gripper_lid", 5, hand.lid),
            ("pinion", 6, hand.pinion),
            ("finger_left", 7, hand.left),
            ("finger_right", 8, hand.right),
        ]
        found = [
            Piece(name, body, solid, solid.volume() / 1000 * d.material_g_cm3 * d.fill, True)
            for name, body, solid in printed
        ]
        places = [*arm.servo_places(d), (5, hand.servo_pose)]
        for number, (body, pose) in enumerate(places, start=1):
            servo = d.standard if number <= 4 else d.micro
            found.append(Piece(f"servo_{number}", body, placed(servo_solid(servo), pose), servo.mass_g, False))
        return found

    @cached_property
    def bodies(self) -> list[Solid]:
        """The union of the pieces of each body, in its frame."""
        return [union(piece.solid for piece in self.pieces if piece.body == i) for i in range(len(BODIES))]

    def poses(self, q_deg: ArrayLike) -> Array:
        """Return (9, 4, 4) poses of the bodies in the world, in mm, for (6,) joint angles in degrees."""
        q = np.asarray(q_deg, dtype=np.float64)
        result = np.empty((len(BODIES), 4, 4))
        result[0] = np.eye(4)
        pose = shift(0, 0, BASE_HEIGHT_M * 1e3)
        for i in range(ARM_JOINTS):
            if i:
                pose = pose @ shift(A_M[i - 1] * 1e3, 0, D_M[i - 1] * 1e3)
                pose = pose @ rotation("x", np.degrees(ALPHA_RAD[i - 1]))
            pose = pose @ rotation("z", q[i] + np.degrees(OFFSETS_RAD[i]))
            result[i + 1] = pose
        opening = self.gripper.travel_mm_rad * np.radians(q[5] + 90)
        result[6] = pose @ shift(0, -REACH, 0) @ rotation("x", -(q[5] + 90)) @ shift(0, REACH, 0)
        result[7] = pose @ shift(0, 0, opening)
        result[8] = pose @ shift(0, 0, -opening)
        return result

    def intersections(
        self, q_deg: ArrayLike, least_mm3: float = 1.0, neighbours: bool = False, of: Sequence[int] = range(len(BODIES))
    ) -> dict[tuple[str, str], float]:
        """Return the pairs of bodies that share volume, in mm3.

        Args:
            q_deg: (6,) joint angles.
            least_mm3: what counts; below it stands the rounding of a touch.
            neighbours: whether bodies that meet in a joint or in the gear are looked at, too.
            of: indices of bodies; a pair counts if one of it is among them.
        Cost: 3 ms; with neighbours 50 ms.
        """
        left_out = TURNING_TOGETHER if neighbours else MEETING
        poses = self.poses(q_deg)
        solids = [placed(solid, pose) for solid, pose in zip(self.bodies, poses, strict=True)]
        boxes = [np.array(solid.bounding_box()).reshape(2, 3) for solid in solids]
        found = {}
        for i, j in itertools.combinations(range(len(BODIES)), 2):
            if (i, j) in left_out or not (i in of or j in of):
                continue
            if (boxes[i][0] > boxes[j][1]).any() or (boxes[j][0] > boxes[i][1]).any():
                continue
            volume = (solids[i] ^ solids[j]).volume()
            if volume > least_mm3:
                found[BODIES[i], BODIES[j]] = volume
        return found
