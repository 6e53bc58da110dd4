"""Solids as STEP files (ISO 10303-21, AP214), for CAD programs: flat faces, each of all triangles in its plane.

Round surfaces are the polygons that they are printed as; a program that wants true cylinders needs the dimensions
(`dimensions.json`) and not the file.
"""

from collections import defaultdict
from collections.abc import Callable

import numpy as np

from featherweight.robot.hardware.solids import Solid, triangles
from featherweight.robot.kinematics.dh import Array

Loop = list[int]
Add = Callable[[str], str]
"""Writes an entity and returns its number."""
_FLAT_MM = 1e-4
"""How far from a common plane the corners of one face may lie."""


def step_bytes(name: str, solid: Solid) -> bytes:
    """Return a solid as a STEP file, in mm; the same solid gives the same bytes.

    Args:
        name: of the part, in ASCII.
        solid: closed.
    """
    vertices, faces = triangles(solid)
    lines: list[str] = []

    def add(text: str) -> str:
        lines.append(f"#{len(lines) + 1}={text};")
        return f"#{len(lines)}"

    context = _context(add)
    points = [add(f"CARTESIAN_POINT('',({x:.6f},{y:.6f},{z:.6f}))") for x, y, z in vertices]
    bounded = []
    for normal, loops in flat_faces(vertices, faces):
        origin, axis = points[loops[0][0]], add(f"DIRECTION('',({_numbers(normal)}))")
        along = add(f"DIRECTION('',({_numbers(_across(normal))}))")
        place = add(f"AXIS2_PLACEMENT_3D('',{origin},{axis},{along})")
        plane = add(f"PLANE('',{place})")
        bounds = []
        for number, loop in enumerate(loops):
            polygon = add(f"POLY_LOOP('',({','.join(points[corner] for corner in loop)}))")
            bounds.append(add(f"{'FACE_OUTER_BOUND' if number == 0 else 'FACE_BOUND'}('',{polygon},.T.)"))
        bounded.append(add(f"FACE_SURFACE('',({','.join(bounds)}),{plane},.T.)"))
    shell = add(f"CLOSED_SHELL('',({','.join(bounded)}))")
    brep = add(f"FACETED_BREP('{name}',{shell})")
    _product(add, name, brep, context)
    head = (
        "ISO-10303-21;\nHEADER;\nFILE_DESCRIPTION((''),'2;1');\n"
        f"FILE_NAME('{name}','2026-01-01T00:00:00',(''),(''),'featherweight','','');\n"
        "FILE_SCHEMA(('AUTOMOTIVE_DESIGN { 1 0 10303 214 1 1 1 1 }'));\nENDSEC;\nDATA;\n"
    )
    return (head + "\n".join(lines) + "\nENDSEC;\nEND-ISO-10303-21;\n").encode("ascii")


def flat_faces(vertices: Array, faces: Array) -> list[tuple[Array, list[Loop]]]:
    """Return the flat faces of a closed body of triangles.

    Args:
        vertices: (V, 3) corners.
        faces: (F, 3) indices, counter-clockwise from outside.
    Returns:
        Normal (3,) and loops of corners of each face: the outer one first, counter-clockwise from outside, then holes.
    """
    faces = np.asarray(faces)
    corners = vertices[faces]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    lengths = np.linalg.norm(normals, axis=1, keepdims=True)
    normals = np.divide(normals, lengths, out=np.zeros_like(normals), where=lengths > 0)
    found = []
    for group in _coplanar(vertices, faces, normals, lengths[:, 0]):
        normal = normals[group[int(np.argmax(lengths[group, 0]))]]
        loops = _loops(faces[group])
        if loops is None:  # a corner where the outline meets itself: its triangles stay what they are
            found += [(normals[one], [list(faces[one])]) for one in group if lengths[one, 0] > 0]
            continue
        loops.sort(key=lambda loop: -abs(_area(vertices[loop], normal)))
        found.append((normal, loops))
    return found


def _coplanar(vertices: Array, faces: Array, normals: Array, sizes: Array) -> list[list[int]]:
    """Return groups of neighbouring triangles in one plane; thin ones join whatever they lie in."""
    neighbours: dict[tuple[int, int], list[int]] = defaultdict(list)
    for index, (a, b, c) in enumerate(faces):
        for edge in ((a, b), (b, c), (c, a)):
            neighbours[(min(edge), max(edge))].append(index)
    beside: dict[int, list[int]] = defaultdict(list)
    for pair in neighbours.values():
        for one in pair:
            beside[one] += [other for other in pair if other != one]
    groups, taken = [], np.zeros(len(faces), dtype=bool)
    for seed in np.argsort(-sizes, kind="stable"):
        if taken[seed]:
            continue
        origin, normal = vertices[faces[seed, 0]], normals[seed]
        group, waiting = [], [int(seed)]
        taken[seed] = True
        while waiting:
            one = waiting.pop()
            group.append(one)
            for other in beside[one]:
                is_flat = np.abs((vertices[faces[other]] - origin) @ normal).max() < _FLAT_MM
                if not taken[other] and is_flat and normals[other] @ normal > -0.5:
                    taken[other] = True
                    waiting.append(other)
        groups.append(group)
    return groups


def _loops(faces: Array) -> list[Loop] | None:
    """Return the outline of some triangles as loops of corners; None if it meets itself at a corner."""
    edges = {(int(a), int(b)) for face in faces for a, b in zip(face, np.roll(face, -1), strict=True)}
    outline = [edge for edge in edges if edge[::-1] not in edges]
    following = dict(outline)
    if len(following) < len(outline):
        return None
    loops = []
    while following:
        start = min(following)
        loop, corner = [start], following.pop(start)
        while corner != start:
            loop.append(corner)
            corner = following.pop(corner)
        loops.append(loop)
    return loops


def _area(corners: Array, normal: Array) -> float:
    """Return the signed area of a polygon seen against its normal."""
    following = np.roll(corners, -1, axis=0)
    return float(np.cross(corners, following).sum(axis=0) @ normal) / 2


def _across(normal: Array) -> Array:
    """Return a direction across a normal."""
    other = np.eye(3)[int(np.argmin(np.abs(normal)))]
    across: Array = np.cross(normal, other)
    return across / np.linalg.norm(across)


def _numbers(vector: Array) -> str:
    return ",".join(f"{value:.9f}" for value in vector)


def _context(add: Add) -> str:
    """Write units: millimetres, radians, and how exact lengths are."""
    length = add("(LENGTH_UNIT()NAMED_UNIT(*)SI_UNIT(.MILLI.,.METRE.))")
    angle = add("(NAMED_UNIT(*)PLANE_ANGLE_UNIT()SI_UNIT($,.RADIAN.))")
    solid = add("(NAMED_UNIT(*)SI_UNIT($,.STERADIAN.)SOLID_ANGLE_UNIT())")
    exact = add(f"UNCERTAINTY_MEASURE_WITH_UNIT(LENGTH_MEASURE(1.E-4),{length},'distance_accuracy_value','')")
    return add(
        "(GEOMETRIC_REPRESENTATION_CONTEXT(3)"
        f"GLOBAL_UNCERTAINTY_ASSIGNED_CONTEXT(({exact}))GLOBAL_UNIT_ASSIGNED_CONTEXT(({length},{angle},{solid}))"
        "REPRESENTATION_CONTEXT('',''))"
    )


def _product(add: Add, name: str, brep: str, context: str) -> None:
    """Write what makes a shape a part with a name."""
    application = add("APPLICATION_CONTEXT('automotive design')")
    add(f"APPLICATION_PROTOCOL_DEFINITION('international standard','automotive_design',2000,{application})")
    kind = add(f"PRODUCT_CONTEXT('',{application},'mechanical')")
    product = add(f"PRODUCT('{name}','{name}','',({kind}))")
    add(f"PRODUCT_RELATED_PRODUCT_CATEGORY('part','',({product}))")
    formation = add(f"PRODUCT_DEFINITION_FORMATION('','',{product})")
    design = add(f"PRODUCT_DEFINITION_CONTEXT('part definition',{application},'design')")
    definition = add(f"PRODUCT_DEFINITION('design','',{formation},{design})")
    shape = add(f"PRODUCT_DEFINITION_SHAPE('','',{definition})")
    origin = add("CARTESIAN_POINT('',(0.,0.,0.))")
    up, along = add("DIRECTION('',(0.,0.,1.))"), add("DIRECTION('',(1.,0.,0.))")
    place = add(f"AXIS2_PLACEMENT_3D('',{origin},{up},{along})")
    representation = add(f"FACETED_BREP_SHAPE_REPRESENTATION('{name}',({place},{brep}),{context})")
    add(f"SHAPE_DEFINITION_REPRESENTATION({shape},{representation})")
