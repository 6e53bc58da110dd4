"""The kit's own parts in the simulator: meshes, masses and inertias of the solids, and the geared fingers."""

from pathlib import Path

from featherweight.errors import ConfigError
from featherweight.robot.hardware.assembly import BODIES, Assembly
from featherweight.robot.hardware.check import check
from featherweight.robot.hardware.dimensions import Dimensions
from featherweight.robot.hardware.masses import MassProperties, body_masses
from featherweight.robot.hardware.solids import Solid, box, hull
from featherweight.robot.hardware.stl import stl_bytes
from featherweight.robot.kinematics.dh import TOOL_M
from featherweight.robot.sim.parts import ArmParts

GRASP_FROM_MM = 66.0
"""What of a finger lies farther along the tool than this touches things in the simulator, as a convex solid."""
PRINT_ONLY = ("thin wall", "too large", "too heavy", "wrong horn", "wrong servo", "reach")
"""Faults with which a gripper can be simulated all the same."""
_CONTACT = 'priority="1" condim="4" friction="1.5 0.02 0.0005" solref="0.004 1" solimp=".95 .99 .001"'
_SHOWN = 'contype="0" conaffinity="0" group="2"'


def arm_with(gripper: Path | None, dimensions: Dimensions | None = None) -> ArmParts:
    """Return the kit's arm with a student's gripper, or with its own.

    Raises:
        ConfigError: if the gripper's file has a fault that keeps it from being simulated.
    """
    d = dimensions or Dimensions()
    if gripper is None:
        return simulated_parts(Assembly(d))
    result = check(gripper, d)
    # What only hurts the print can be simulated; what is no solid cannot.
    fatal = [fault for _, fault in result.faults if fault.name not in PRINT_ONLY]
    if result.gripper is None or fatal:
        text = fatal[0].text if fatal else "it builds no gripper."
        raise ConfigError(
            f"robot: gripper={gripper} cannot be simulated ({text}); expected a good one. Run fw robot kit check."
        )
    return simulated_parts(Assembly(d, result.gripper))


def simulated_parts(assembly: Assembly) -> ArmParts:
    """Return an arm for `World(parts=...)` or `SimRobot(parts=...)`."""
    assets: dict[str, bytes] = {}
    meshes: list[str] = []

    def mesh(name: str, solid: Solid) -> str:
        assets[f"{name}.stl"] = stl_bytes(solid)
        meshes.append(f'<mesh name="{name}" file="{name}.stl" scale="0.001 0.001 0.001" inertia="shell"/>')
        return f'type="mesh" mesh="{name}"'

    masses = body_masses(assembly)
    texts = []
    for i in range(len(BODIES)):
        text = _inertial(masses[i]) if i else ""
        for piece in assembly.pieces:
            if piece.body != i:
                continue
            is_link = piece.is_printed and i < 6
            color = (
                "0.23 0.51 0.74 1"
                if is_link and i < 5
                else "0.85 0.47 0.16 1"
                if piece.is_printed
                else "0.16 0.18 0.22 1"
            )
            # The hull of a printed link touches table and cubes; servos and fingers are only shown.
            touch = 'class="link" group="2"' if is_link else _SHOWN
            text += f'<geom {touch} {mesh(piece.name, piece.solid)} rgba="{color}" mass="0"/>'
        texts.append(text)
    reach = box((-200, 200), (-300, -GRASP_FROM_MM), (-200, 200))
    for name, solid in (("pad_left", assembly.gripper.left), ("pad_right", assembly.gripper.right)):
        mesh(name, hull([solid ^ reach]))
    return ArmParts(assets, "".join(meshes), tuple(texts[:6]), _hand(texts), _couple(assembly))


def _hand(texts: list[str]) -> str:
    fingers = ""
    for name, side, text in (("left", 1, texts[7]), ("right", -1, texts[8])):
        fingers += (
            f'<body name="finger_{name}"><joint name="{name}" type="slide" axis="0 0 {side}" range="-0.001 0.027" '
            f'damping="2" armature="0.02"/>{text}<geom name="pad_{name}" type="mesh" mesh="pad_{name}" mass="0" '
            f'group="3" contype="1" conaffinity="2" {_CONTACT}/></body>'
        )
    return (
        f'<site name="tool0" pos="0 {-TOOL_M} 0" size="0.003" rgba="0 1 0 0"/>'
        '<camera name="wrist" pos="0.060 -0.01 0" xyaxes="0 0 1 0.88 -0.47 0" fovy="60"/>'
        # The pinion turns against the fingers' opening, as its rack does.
        '<body name="gear" pos="0 -0.040 0"><joint name="j6" axis="-1 0 0" ref="0" armature="0.0005" damping="0.002"/>'
        f'<body name="pinion" pos="0 0.040 0">{texts[6]}</body></body>{fingers}'
    )


def _couple(assembly: Assembly) -> str:
    travel = assembly.gripper.travel_mm_rad / 1e3
    couple = f'polycoef="{travel * 1.5707963268:.8f} {travel:.8f} 0 0 0" solref="0.004 1" solimp=".95 .99 .001"'
    return (
        f'<equality><joint joint1="left" joint2="j6" {couple}/><joint joint1="right" joint2="j6" {couple}/></equality>'
        '<contact><exclude body1="finger_left" body2="finger_right"/></contact>'
    )


def _inertial(mass: MassProperties) -> str:
    i = mass.inertia_kg_m2
    values = (i[0, 0], i[1, 1], i[2, 2], i[0, 1], i[0, 2], i[1, 2])
    center = " ".join(f"{value:.9g}" for value in mass.center_m)
    return f'<inertial pos="{center}" mass="{mass.mass_kg:.9g}" fullinertia="{" ".join(f"{v:.9g}" for v in values)}"/>'
