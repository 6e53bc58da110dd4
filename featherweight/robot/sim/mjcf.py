"""The arm, its gripper and its table as MJCF, written from numbers; no meshes.

Each D-H body frame comes before the twist about x, so the forearm lies along -y of body 3 and +z of body 4. Masses, boxes
and centres of mass are those of the published model, moved to the D-H frames where simple; contact and servo numbers were
found in simulation (see docs/robot.md).
"""

import colorsys
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from featherweight.errors import ConfigError, did_you_mean
from featherweight.robot.camera.fiducial import CARD_M, DOT_M, GRIPPER_CARD, TABLE_CARD, Card
from featherweight.robot.kinematics.dh import A_M, ALPHA_RAD, BASE_HEIGHT_M, D_M, OFFSETS_RAD, TOOL_M
from featherweight.robot.kinematics.urdf import RPY_RAD, XYZ_M
from featherweight.robot.sim.graphics import import_mujoco
from featherweight.robot.sim.parts import ArmParts

if TYPE_CHECKING:
    import mujoco

STEP_S = 0.002
ARM_JOINT_NAMES = ("j1", "j2", "j3", "j4", "j5")
SCENES = ("empty", "challenge", "student")
CUBE_M = 0.022
CUBE_COLORS = (
    "0.90 0.30 0.20 1",
    "0.20 0.55 0.90 1",
    "0.25 0.70 0.35 1",
    "0.95 0.75 0.20 1",
    "0.60 0.40 0.80 1",
    "0.9 0.5 0.7 1",
)
KP, DAMPING, ARMATURE = 40.0, 0.1, 0.002
"""Servo stiffness in N m/rad, joint damping in N m s/rad, rotor inertia. Stronger damping would eat the servo's torque."""
ARM_TORQUE_NM, GRIPPER_TORQUE_NM = 1.0, 0.18
JOINT_LIMIT_RAD = math.radians(95)
"""A little beyond the command's range, so that the stop does not carry the load at 90 degrees."""
_CONTACT = 'priority="1" condim="4" friction="1.5 0.02 0.0005" solref="0.004 1" solimp=".95 .99 .001"'


def build_model(scene: str = "empty", **options: Any) -> "mujoco.MjModel":
    """Return the compiled model of a scene; see `build_mjcf`.

    Raises:
        ConfigError: if the scene does not compile; the message holds MuJoCo's reason.
        MissingExtraError: if mujoco is not installed.
    """
    mujoco = import_mujoco()
    text = build_mjcf(scene, **options)
    parts: ArmParts | None = options.get("parts")
    try:
        return mujoco.MjModel.from_xml_string(text, dict(parts.assets) if parts is not None else None)
    except ValueError as error:
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"robot: scene={scene} cannot be loaded ({reason}); expected valid MJCF. Correct the gripper's file."
        ) from error


def build_mjcf(
    scene: str = "empty",
    *,
    cubes: int = 3,
    gripper: bool = True,
    gripper_file: str | Path | None = None,
    tool_m: float = TOOL_M,
    model: str = "dh",
    parts: ArmParts | None = None,
    cards: bool = False,
) -> str:
    """Write a scene.

    Args:
        scene: "empty" (arm and table), "challenge" (coloured cubes and a bin), "student" (an own gripper).
        cubes: of the challenge, 1 to 6.
        gripper: whether the arm has the gripper; without it there are five joints and no contacts of fingers.
        gripper_file: MJCF of the student's gripper: a file whose worldbody is attached at `tool0`, with an actuator
            named "gripper".
        tool_m: from the wrist to the tool point.
        cards: put the cards of `camera.fiducial` on gripper and table.
        model: "dh", or "urdf" for the frames of the published URDF (kinematics only, without gripper).
        parts: real parts in place of the primitive shapes and their gripper; see `hardware.simulated`.
    Raises:
        ConfigError: if an option is unknown or the file cannot be read.
    """
    if scene not in SCENES:
        raise ConfigError(f"robot: scene={scene!r} is unknown; expected a scene. {did_you_mean(scene, SCENES)}")
    if not 1 <= cubes <= len(CUBE_COLORS):
        raise ConfigError(f"robot: cubes={cubes} is out of range; expected 1 to {len(CUBE_COLORS)}. Change it.")
    if model == "urdf":
        return _urdf_mjcf()
    if scene == "student":
        if gripper_file is None:
            raise ConfigError("robot: scene=student needs gripper_file; expected the MJCF of a gripper. Give its path.")
        hand, extra = _read_gripper(Path(gripper_file))
    else:
        hand, extra = (_gripper(tool_m), _gripper_extra()) if gripper else ("", "")
        if parts is not None:
            hand, extra = parts.hand, parts.extra
    objects = _challenge(cubes) if scene == "challenge" else ""
    if cards:
        hand, objects = hand + _card(GRIPPER_CARD), objects + _card(TABLE_CARD)
    actuators = "".join(
        f'<position name="{name}" joint="{name}" kp="{KP}" ctrlrange="-1.5707963 1.5707963" '
        f'forcerange="{-ARM_TORQUE_NM} {ARM_TORQUE_NM}"/>'
        for name in ARM_JOINT_NAMES
    )
    gripper_actuator = (
        f'<position name="gripper" joint="j6" kp="{KP}" ctrlrange="-1.5707963 1.5707963" '
        f'forcerange="{-GRIPPER_TORQUE_NM} {GRIPPER_TORQUE_NM}"/>'
        if hand and scene != "student"
        else ""
    )
    return f"""<mujoco model="umirobot">
<compiler angle="radian" autolimits="true"/>
<option timestep="{STEP_S}" integrator="implicitfast" cone="elliptic" impratio="10"/>
<visual><quality shadowsize="0" offsamples="0"/><global offwidth="1280" offheight="960"/>
<headlight ambient="0.32 0.32 0.32" diffuse="0.38 0.38 0.38" specular="0 0 0"/><map znear="0.01"/></visual>
<default>
<joint damping="{DAMPING}" armature="{ARMATURE}" range="{-JOINT_LIMIT_RAD} {JOINT_LIMIT_RAD}"/>
<geom solref="0.004 1" solimp=".95 .99 .001"/>
<default class="link"><geom type="box" rgba="0.23 0.51 0.74 1" contype="1" conaffinity="2"/></default>
<default class="servo"><geom type="box" rgba="0.16 0.18 0.22 1" contype="0" conaffinity="0"/></default>
</default>
<asset><texture type="skybox" builtin="gradient" rgb1="0.93 0.95 0.97" rgb2="0.72 0.79 0.86" width="64" height="64"/>
{parts.asset if parts is not None else ""}</asset>
<worldbody>
<light pos="0.2 -0.4 1.2" dir="0 0.2 -1" castshadow="false" diffuse="0.32 0.32 0.32" specular="0 0 0"/>
<geom name="table" type="box" size="0.45 0.45 0.02" pos="0.1 0 -0.02" rgba="0.86 0.84 0.80 1" contype="2" conaffinity="3"/>
<camera name="front" pos="0.55 0 0.33" xyaxes="0 1 0 -0.55 0 0.83" fovy="42"/>
<camera name="top" pos="0.17 0 0.62" xyaxes="0 -1 0 1 0 0" fovy="45"/>
{_arm(hand, parts)}
{objects}
</worldbody>
{extra}
<actuator>{actuators}{gripper_actuator}</actuator>
</mujoco>"""


def _arm(hand: str, parts: ArmParts | None) -> str:
    """Write base and five nested bodies; body i turns with joint i about its z axis."""
    boxes: dict[int, list[tuple[Any, Any, str, float]]] = {
        # Of each link, in its own frame: (half size, centre, class, mass).
        1: [((0.016, 0.016, 0.012), (0, 0, 0.012), "link", 0.03)],
        2: [
            ((0.046, 0.012, 0.016), (0.0405, 0, 0.0), "link", 0.086),
            ((0.012, 0.020, 0.013), (0.0, 0.0, 0.0), "servo", 0.0),
        ],
        3: [((0.014, 0.052, 0.014), (0, -0.052, 0), "link", 0.051), ((0.013, 0.013, 0.020), (0, 0, 0), "servo", 0.0)],
        4: [((0.012, 0.012, 0.026), (0, 0, -0.034), "link", 0.0595), ((0.011, 0.016, 0.011), (0, 0, 0), "servo", 0.0)],
        5: [((0.011, 0.016, 0.011), (0, -0.018, 0), "link", 0.0263)],
    }
    inner = f'<site name="wrist" size="0.004" rgba="1 0 0 0"/>{hand}'
    for i in range(5, 0, -1):
        # Body i: the twist of joint i - 1, then the offset of joint i; its own d and a place the next body.
        twist = ALPHA_RAD[i - 2] if i > 1 else 0.0
        place = (A_M[i - 2], 0.0, D_M[i - 2]) if i > 1 else (0.0, 0.0, BASE_HEIGHT_M)
        quat = _multiply(_about_x(twist), _about_z(OFFSETS_RAD[i - 1]))
        geoms = (
            parts.bodies[i]
            if parts is not None
            else "".join(
                f'<geom class="{kind}" size="{_words(size)}" pos="{_words(center)}" mass="{mass}"/>'
                for size, center, kind, mass in boxes[i]
            )
        )
        # The frame of joint i - 1 ends with Tx(a) and Tz(d) before its twist, in the frame that turns with it.
        inner = (
            f'<body name="link{i}" pos="{_words(place)}" quat="{_words(quat)}" gravcomp="0">'
            f'<joint name="j{i}" axis="0 0 1"/>{geoms}{inner}</body>'
        )
    base = '<geom class="link" name="base" size="0.035 0.030 0.028" pos="0 0 0.030" rgba="0.16 0.18 0.22 1"/>'
    return f'<body name="base">{parts.bodies[0] if parts is not None else base}{inner}</body>'


def _gripper(tool_m: float) -> str:
    """Write servo 6 and two fingers; -90 degrees closes them, +90 opens them to 50 mm."""
    finger = (
        '<geom class="link" size="0.004 0.019 0.003" pos="0 -0.004 {outer}" mass="0.004" rgba="0.30 0.32 0.36 1" contype="0" '
        'conaffinity="0"/>'
        f'<geom name="{{name}}" type="box" size="0.009 0.010 0.002" pos="0 -0.004 {{pad}}" mass="0.002" rgba="0.1 0.1 0.1 1" '
        f'contype="1" conaffinity="2" {_CONTACT}/>'
    )
    near = tool_m - 0.002
    return f"""
<site name="tool0" pos="0 {-tool_m} 0" size="0.003" rgba="0 1 0 0"/>
<camera name="wrist" pos="0.045 -0.01 0" xyaxes="0 0 1 0.88 -0.47 0" fovy="60"/>
<geom class="link" size="0.012 0.012 0.030" pos="0 -0.048 0" mass="0.012" rgba="0.30 0.32 0.36 1" contype="0" conaffinity="0"/>
<body name="gear" pos="0.014 -0.040 0"><joint name="j6" axis="1 0 0" armature="0.0005" damping="0.002"/>
<geom type="cylinder" size="0.008 0.003" euler="0 1.5707963 0" mass="0.002" rgba="0.9 0.9 0.9 1" contype="0" conaffinity="0"/></body>
<body name="finger_left" pos="0 {-near} 0"><joint name="left" type="slide" axis="0 0 1" range="-0.001 0.027" damping="2" armature="0.02"/>
{finger.format(outer="0.007", pad="0.002", name="pad_left")}</body>
<body name="finger_right" pos="0 {-near} 0"><joint name="right" type="slide" axis="0 0 -1" range="-0.001 0.027" damping="2" armature="0.02"/>
{finger.format(outer="-0.007", pad="-0.002", name="pad_right")}</body>"""


def _gripper_extra() -> str:
    couple = 'polycoef="0.0125 0.00796 0 0 0" solref="0.004 1" solimp=".95 .99 .001"'
    return (
        f'<equality><joint joint1="left" joint2="j6" {couple}/><joint joint1="right" joint2="j6" {couple}/></equality>'
        '<contact><exclude body1="finger_left" body2="finger_right"/></contact>'
    )


def _read_gripper(path: Path) -> tuple[str, str]:
    """Return a student's bodies, to be put at the tool, and what else stands in the file."""
    import xml.etree.ElementTree as ElementTree

    try:
        root = ElementTree.fromstring(path.read_text())
    except (OSError, ElementTree.ParseError) as error:
        raise ConfigError(
            f"robot: gripper_file={path} cannot be read ({error}); expected MJCF. Correct the path or file."
        ) from error
    world = root.find("worldbody")
    if root.tag != "mujoco" or world is None:
        raise ConfigError(f"robot: gripper_file={path} has no <mujoco><worldbody>; expected MJCF. Export it again.")
    if root.find("actuator/*[@name='gripper']") is None:
        raise ConfigError(f"robot: gripper_file={path} has no actuator named 'gripper'; expected one. Name it so.")
    bodies = "".join(ElementTree.tostring(child, encoding="unicode") for child in world)
    rest = "".join(
        ElementTree.tostring(child, encoding="unicode")
        for child in root
        if child.tag in ("asset", "equality", "contact", "actuator", "tendon", "sensor", "default")
    )
    return f'<site name="tool0" pos="0 {-TOOL_M} 0" size="0.003"/>{bodies}', rest


def _challenge(cubes: int) -> str:
    """Write cubes as free bodies, and one bin of 80 mm with walls of 30 mm; `world` places them."""
    half = CUBE_M / 2
    text = "".join(
        f'<body name="cube{i}" pos="{0.13 + 0.03 * i} {0.05 * (-1) ** i} {half}"><freejoint name="cube{i}"/>'
        f'<geom name="cube{i}" type="box" size="{half} {half} {half}" mass="0.008" rgba="{color}" contype="2" conaffinity="3" '
        'friction="0.8 0.02 0.0005"/></body>'
        for i, color in enumerate(CUBE_COLORS[:cubes])
    )
    walls = "".join(
        f'<geom type="box" size="{sx} {sy} 0.015" pos="{x} {y} 0.015" rgba="0.55 0.45 0.35 1" contype="2" conaffinity="3"/>'
        for sx, sy, x, y in (
            (0.042, 0.002, 0, 0.042),
            (0.042, 0.002, 0, -0.042),
            (0.002, 0.04, 0.042, 0),
            (0.002, 0.04, -0.042, 0),
        )
    )
    return f'{text}<body name="bin" mocap="true" pos="0 0.17 0">{walls}</body>'


def _card(card: Card) -> str:
    """Write a white plate with four coloured dots; nothing touches it."""
    axes = f'xyaxes="{_words(card.right)} {_words(card.up)}"'
    half, untouched = CARD_M / 2, 'contype="0" conaffinity="0" mass="0"'
    back = np.array(card.center_m) - 0.0006 * card.normal
    plate = f'<geom type="box" size="{half} {half} 0.0004" pos="{_words(back)}" {axes} rgba="1 1 1 1" {untouched}/>'
    dots = (
        f'<geom type="cylinder" size="{DOT_M} 0.0002" pos="{_words(place)}" {axes} '
        f'rgba="{_words(colorsys.hsv_to_rgb(hue, 1, 1))} 1" {untouched}/>'
        for place, hue in zip(card.dots_m, card.hues, strict=True)
    )
    return plate + "".join(dots)


def _urdf_mjcf() -> str:
    inner = '<site name="wrist" size="0.004"/>'
    for i in range(5, 0, -1):
        inner = (
            f'<body name="link{i}" pos="{_words(XYZ_M[i - 1])}" euler="{_words(RPY_RAD[i - 1])}"><joint name="j{i}" axis="0 0 1" '
            f'range="-1.66 1.66"/><geom size="0.01" mass="0.05"/>{inner}</body>'
        )
    # Capital letters: rotations about fixed axes, as a URDF means them.
    return (
        '<mujoco model="umirobot_urdf"><compiler angle="radian" eulerseq="XYZ"/>'
        f"<worldbody>{inner}</worldbody></mujoco>"
    )


def _words(values: Any) -> str:
    return " ".join(f"{value:.12g}" for value in values)


def _about_x(angle: float) -> tuple[float, float, float, float]:
    return math.cos(angle / 2), math.sin(angle / 2), 0.0, 0.0


def _about_z(angle: float) -> tuple[float, float, float, float]:
    return math.cos(angle / 2), 0.0, 0.0, math.sin(angle / 2)


def _multiply(p: tuple[float, ...], q: tuple[float, ...]) -> tuple[float, ...]:
    (a, b, c, d), (e, f, g, h) = p, q
    return (
        a * e - b * f - c * g - d * h,
        a * f + b * e + c * h - d * g,
        a * g - b * h + c * e + d * f,
        a * h + b * g - c * f + d * e,
    )
