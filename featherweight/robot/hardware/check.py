"""The judge's pre-flight: does a gripper, or a part from a file, print, fit the arm, and spare the servos?

A gripper is a Python file with a function ``build(dimensions)`` that returns a `Gripper`, or a JSON file of dimensions
from which the kit's own is built; a part is a file of triangles (STL, 3MF, OBJ, PLY, OFF) in millimetres. Every fault
has a short name, a sentence with numbers, and places for pictures.
"""

import importlib.util
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from featherweight.errors import ConfigError, MissingExtraError
from featherweight.robot.hardware.arm import WRIST_HORN
from featherweight.robot.hardware.assembly import Assembly
from featherweight.robot.hardware.dimensions import Dimensions
from featherweight.robot.hardware.gripper import FINGER_END, Gripper, build_gripper
from featherweight.robot.hardware.masses import static_loads
from featherweight.robot.hardware.printability import NOWHERE, Fault, mesh_faults, overhang_mm2
from featherweight.robot.hardware.printed import GAP_MM
from featherweight.robot.hardware.solids import Solid, box, cylinder, ear_holes, placed, servo_solid, triangles, union
from featherweight.robot.hardware.threemf import read_threemf
from featherweight.robot.kinematics.dh import Array
from featherweight.robot.kinematics.inverse import table_top

LEAST_MARGIN = 2.0
"""Of every servo's stall torque over the worst static load: a servo warms up at half of its torque."""
SHAPELESS = frozenset({"open", "tangled", "inverted", "no mesh", "units"})
"""Faults after which nothing else can be asked."""
INCH_MM = 25.4
SUFFIXES = (".stl", ".3mf", ".obj", ".ply", ".off")
PARTS = ("palm", "pinion", "left", "right", "lid")


@dataclass
class Checked:
    """What was found about a file.

    Attributes:
        path: of the file.
        faults: (part, fault) pairs; none means that it is good.
        figures: name -> text, for a report.
        parts: (name, corners in mm, triangles), for pictures.
        gripper: of a Python file that could be built.
    """

    path: Path
    faults: list[tuple[str, Fault]] = field(default_factory=list)
    figures: dict[str, str] = field(default_factory=dict)
    parts: list[tuple[str, Array, Any]] = field(default_factory=list)
    gripper: Gripper | None = None

    @property
    def names(self) -> list[str]:
        """Short names of the faults."""
        return [fault.name for _, fault in self.faults]


def load_gripper(path: Path, dimensions: Dimensions) -> Gripper:
    """Run a gripper's file and return what it builds.

    Raises:
        ConfigError: if the file is missing, fails, or builds no gripper; one sentence says what and where.
    """
    if not path.is_file():
        raise ConfigError(f"robot: gripper={path} is not there; expected a Python file. Check the path.")
    spec = importlib.util.spec_from_file_location(f"gripper_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"robot: gripper={path} is no Python file; expected one that ends in .py. Rename it.")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        build = module.build
        result = build(dimensions)
    except MissingExtraError:
        raise
    except Exception as error:  # the file is a student's own; whatever it raises is told in one sentence
        line = _line_of(error, path)
        raise ConfigError(
            f"robot: gripper={path} fails{line} ({type(error).__name__}: {error}); expected a function "
            "build(dimensions) that returns a Gripper. Correct it, or start from fw robot kit template."
        ) from error
    if not isinstance(result, Gripper):
        raise ConfigError(
            f"robot: gripper={path} builds a {type(result).__name__}; expected a Gripper. Return one from build()."
        )
    return result


def _line_of(error: BaseException, path: Path) -> str:
    if isinstance(error, SyntaxError):
        return f" in line {error.lineno}"
    trace, line = error.__traceback__, None
    while trace is not None:
        if Path(trace.tb_frame.f_code.co_filename) == path:
            line = trace.tb_lineno
        trace = trace.tb_next
    return f" in line {line}" if line else ""


def load_mesh(path: Path, most_triangles: int | None = None) -> tuple[Array, Any]:
    """Read triangles; return (V, 3) corners and (F, 3) indices as the file has them.

    Args:
        path: of the file.
        most_triangles: more are refused; None for no limit.
    Raises:
        ConfigError: if the file is missing, holds no triangles, or too many.
    """
    if path.suffix.lower() == ".3mf":
        return read_threemf(path, most_triangles)
    try:
        import trimesh
    except ImportError as error:
        raise MissingExtraError(
            "robot: package=trimesh is not installed; expected it to read meshes. Run pip install featherweight[kit]."
        ) from error
    try:
        mesh = trimesh.load(path, force="mesh", process=False)
        vertices, faces = np.asarray(mesh.vertices, np.float64), np.asarray(mesh.faces, np.int64)
    except Exception as error:  # each reader of trimesh raises its own kinds
        raise ConfigError(
            f"robot: part={path} cannot be read as a mesh ({error}); expected {', '.join(SUFFIXES)}. Export it again."
        ) from error
    if vertices.ndim != 2 or len(faces) == 0:
        raise ConfigError(f"robot: part={path} holds no triangles; expected a solid. Export it again.")
    if most_triangles is not None and len(faces) > most_triangles:
        raise ConfigError(
            f"robot: part={path} has {len(faces)} triangles; expected at most {most_triangles}. Export it coarser."
        )
    return vertices, faces


def check(path: str | Path, dimensions: Dimensions | None = None, most_triangles: int | None = None) -> Checked:
    """Examine a gripper (.py, or .json with dimensions of its own) or a single part (a mesh).

    Args:
        path: of the file.
        dimensions: of the kit; None for its own.
        most_triangles: of a mesh; more are refused. None for no limit.
    Raises:
        MissingExtraError: if the packages of the extra `kit` are missing.
    Cost: about two seconds for a gripper.
    """
    path, d = Path(path), dimensions or Dimensions()
    result = Checked(path)
    try:
        if path.suffix in (".py", ".json"):
            if path.suffix == ".json":
                d = Dimensions.from_file(path)
            gripper = load_gripper(path, d) if path.suffix == ".py" else build_gripper(d)
            result.gripper = gripper
            for name in PARTS:
                solid = getattr(gripper, name)
                result.parts.append((name, *_triangles_of(name, solid)))
        else:
            result.parts.append((path.stem, *load_mesh(path, most_triangles)))
    except MissingExtraError:
        raise
    except ConfigError as error:
        kind = "fails" if path.suffix in (".py", ".json") else "no mesh"
        result.faults.append((path.name, Fault(kind, str(error), NOWHERE)))
        return result
    for name, vertices, faces in result.parts:
        result.faults += [
            (name, fault) for fault in (*_size_faults(vertices, d), *mesh_faults(vertices, faces, d.minimum_wall))
        ]
        result.figures[f"overhang of {name}, mm2"] = f"{overhang_mm2(vertices, faces):.0f}"
    if result.gripper is not None and not SHAPELESS.intersection(result.names):
        _check_fit(result, result.gripper, d)
    return result


def _triangles_of(name: str, solid: Solid) -> tuple[Array, Any]:
    if not hasattr(solid, "to_mesh64"):
        raise ConfigError(f"robot: {name}={type(solid).__name__} is no solid; expected one of manifold3d. Return one.")
    if solid.is_empty():
        raise ConfigError(f"robot: {name} is empty ({solid.status()}); expected a solid. Look at how it is cut.")
    return triangles(solid)


def _size_faults(vertices: Array, d: Dimensions) -> list[Fault]:
    size = vertices.max(0) - vertices.min(0)
    words = " x ".join(f"{side:.1f}" for side in size)
    if size.max() < 8 and len(vertices) > 4:
        return [
            Fault(
                "units",
                f"it measures {words} mm, as if it were drawn in inches ({size.max() * INCH_MM:.0f} mm then). "
                "Export it in millimetres.",
                NOWHERE,
            )
        ]
    most = d.bed - 2 * GAP_MM
    if sorted(size)[1] > most or size.max() > max(most, d.print_height):
        return [Fault("too large", f"it measures {words} mm; expected at most {most:.0f} on the bed. Cut it.", NOWHERE)]
    return []


def _check_fit(result: Checked, gripper: Gripper, d: Dimensions) -> None:
    """Look at what only a whole gripper can be asked: horn, servo, arm, reach, travel, weight."""
    add = result.faults.append
    result.faults += [("palm", fault) for fault in (*_horn_faults(gripper, d), *_servo_faults(gripper, d))]
    assembly = Assembly(d, gripper)
    hits = {pair for pose in _poses() for pair in assembly.intersections(pose, 5.0, neighbours=True, of=range(5, 9))}
    if hits:
        words = ", ".join(f"{a} and {b}" for a, b in sorted(hits))
        add(("gripper", Fault("collides", f"{words} run into each other within the limits. Make it smaller.", NOWHERE)))
    closed = (gripper.left ^ gripper.right).volume()
    if closed > 5:
        add(("left", Fault("fingers overlap", f"closed fingers share {closed:.0f} mm3. Let them touch.", NOWHERE)))
    for name, finger in (("left", gripper.left), ("right", gripper.right)):
        end = -finger.bounding_box()[1]
        if abs(end - FINGER_END) > 12:
            text = (
                f"the finger ends {end:.0f} mm from the wrist; expected {FINGER_END:.0f} +- 12, as the kinematics have "
                "it. Change its length."
            )
            add((name, Fault("reach", text, NOWHERE)))
    opening = gripper.travel_mm_rad * np.pi
    if not 10 <= opening <= 30:
        add(
            (
                "pinion",
                Fault("travel", f"a finger moves {opening:.0f} mm; expected 10 to 30. Change the gear.", NOWHERE),
            )
        )
    loads = static_loads(assembly)
    weakest = min(loads, key=lambda load: load.margin)
    if weakest.margin < LEAST_MARGIN:
        add(
            (
                "gripper",
                Fault(
                    "too heavy",
                    f"servo {weakest.joint} needs {weakest.needed_nm:.2f} of its {weakest.stall_nm:.2f} N m; expected "
                    f"at most 1/{LEAST_MARGIN:g}. Take material away.",
                    NOWHERE,
                ),
            )
        )
    mass = sum(piece.mass_g for piece in assembly.pieces if piece.body >= 5)
    result.figures |= {
        "mass of the hand, g": f"{mass:.1f}",
        "opening, mm": f"{2 * opening:.0f}",
        "weakest servo": f"{weakest.joint}, {weakest.margin:.1f} times the load",
    }


def _poses() -> list[Any]:
    """Return postures over the table, from near to far, with the gripper closed and open, and the wrist rolled."""
    found: list[Any] = [(0, 0, 0, roll, bend, grip) for roll in (0, 90) for bend in (-90, 90) for grip in (-90, 90)]
    for radius in (0.11, 0.18, 0.25):
        joints = table_top(np.array([radius, 0.0, 0.03]))
        if joints is not None:
            found += [(*np.degrees(joints), grip) for grip in (-90, 90)]
    return found


def _horn_faults(gripper: Gripper, d: Dimensions) -> list[Fault]:
    """The palm is screwed to servo 5's horn: material around the axis, free holes where the horn's are."""
    m = d.micro
    ring = cylinder("z", 7.5, WRIST_HORN + 0.2, WRIST_HORN + 1.8) - cylinder("z", 4.4, WRIST_HORN, WRIST_HORN + 3)
    holes = union(
        cylinder("z", 0.6, WRIST_HORN + 0.2, WRIST_HORN + 1.8, (0.0, side * m.screw_circle)) for side in (-1, 1)
    )
    collars = union(
        cylinder("z", 1.7, WRIST_HORN + 0.2, WRIST_HORN + 1.8, (0.0, side * m.screw_circle))
        - cylinder("z", 1.0, WRIST_HORN, WRIST_HORN + 3, (0.0, side * m.screw_circle))
        for side in (-1, 1)
    )
    there = min((one ^ gripper.palm).volume() / one.volume() for one in (ring, collars))
    blocked = (holes ^ gripper.palm).volume() / holes.volume()
    if there > 0.5 and blocked < 0.15:
        return []
    what = f"{blocked:.0%} of its screw holes are blocked" if there > 0.5 else "there is nothing around its screws"
    return [
        Fault(
            "wrong horn",
            f"the palm does not fit the horn of servo 5: {what}; expected two holes {m.screw_circle:g} mm from "
            f"the axis in a plate at z = {WRIST_HORN:g} mm. Use horn_holes(dimensions.micro, ...).",
            np.array([[0.0, 0.0, WRIST_HORN]]),
        )
    ]


def _servo_faults(gripper: Gripper, d: Dimensions) -> list[Fault]:
    """Servo 6 must fit into the palm, and be held by it: free inside, material near its ears."""
    servo = placed(servo_solid(d.micro), gripper.servo_pose)
    inside = (gripper.palm ^ servo).volume()
    m, top = d.micro, d.micro.ear_bottom + d.micro.ear_thickness
    held = 0.0
    for start, end in ((m.ear_bottom - 2.2, m.ear_bottom - 0.4), (top + 0.4, top + 2.2)):
        collars = placed(ear_holes(m, 4.4, start, end) - ear_holes(m, 2.6, start - 1, end + 1), gripper.servo_pose)
        held = max(held, (collars ^ gripper.palm).volume() / collars.volume())
    if inside > 20:
        text = f"servo 6 ({m.name}) does not fit: {inside:.0f} mm3 of the palm are in its way"
    elif held < 0.5:
        text = f"nothing holds servo 6 ({m.name}): there is no wall at the screws of its ears"
    else:
        return []
    x, y, z = np.asarray(gripper.servo_pose)[:3, 3]
    return [Fault("wrong servo", f"{text}. Cut servo_solid(dimensions.micro, clearance) out.", np.array([[x, y, z]]))]


def draw_faults(result: Checked, width_px: int = 640, height_px: int = 480) -> Any:
    """Return a picture of the parts with red balls where the faults are.

    Raises:
        DeviceError: if no graphics work here.
    """
    from featherweight.robot.hardware.pictures import GRIPPER, PRINTED, SERVO, Shown, draw
    from featherweight.robot.hardware.solids import import_manifold

    manifold = import_manifold()
    shown = []
    for name, vertices, faces in result.parts:
        color = {"palm": PRINTED, "lid": PRINTED, "pinion": SERVO}.get(name, GRIPPER)
        shown.append(Shown((vertices, faces), color))
    if not shown:
        shown = [Shown(box((0, 1), (0, 1), (0, 1)))]
    size = max(float(np.ptp(vertices, axis=0).max()) for _, vertices, _ in result.parts) if result.parts else 1.0
    for _, fault in result.faults:
        step = max(1, len(fault.places) // 60)
        for place in fault.places[::step]:
            ball = manifold.Manifold.sphere(size / 50, 12).translate([float(value) for value in place])
            shown.append(Shown(ball, "0.9 0.1 0.1 1"))
    return draw(shown, width_px, height_px, azimuth_deg=125, elevation_deg=-25, floor=False)
